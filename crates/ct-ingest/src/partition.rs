//! Partitions of a cohort: several processes each read some of its cases, and `ct-ingest
//! merge` joins what they wrote. Which case is whose follows from the case's name alone,
//! so that no process has to know of the others.

use diag_data::case::CaseId;
use diag_data::files;
use serde::{Deserialize, Serialize};

/// One of several partitions. Invariant: `index < count`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Which one, from 0.
    pub index: u32,
    /// How many there are.
    pub count: u32,
}

impl Partition {
    /// Reads `I/N`, counted from 0; or `auto`, which takes both from a Slurm
    /// array; or `auto/N`, which takes I from a Slurm array or a Kubernetes
    /// indexed Job. `variable` gives environment variables.
    ///
    /// # Errors
    /// What is wrong with the text or missing in the environment.
    pub fn read(text: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, String> {
        let number = |text: &str| {
            text.trim().parse::<u32>().map_err(|_| format!("`{text}` is not a number from 0 to {}", u32::MAX))
        };
        let from_environment = |name: &str| variable(name).map(|text| number(&text)).transpose();
        let (index, count) = match text.split_once('/') {
            Some((index, count)) => (index, Some(number(count)?)),
            None => (text, None),
        };
        let (index, count) = match (index, count) {
            ("auto", count) => {
                let first = from_environment("SLURM_ARRAY_TASK_MIN")?.unwrap_or(0);
                let step = from_environment("SLURM_ARRAY_TASK_STEP")?.unwrap_or(1).max(1);
                let in_array =
                    from_environment("SLURM_ARRAY_TASK_ID")?.map(|id| id.saturating_sub(first) / step);
                let index = match in_array {
                    Some(index) => Some(index),
                    None => from_environment("JOB_COMPLETION_INDEX")?,
                };
                let count = count.or(from_environment("SLURM_ARRAY_TASK_COUNT")?);
                let missing = "auto needs SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT, or auto/N and \
                               JOB_COMPLETION_INDEX, in the environment";
                (index.ok_or(missing)?, count.ok_or(missing)?)
            }
            (index, Some(count)) => (number(index)?, count),
            (_, None) => return Err(format!("`{text}` is neither I/N nor auto")),
        };
        if index >= count {
            return Err(format!(
                "there is no partition {index} of {count}: the first is 0, the last {}",
                count.saturating_sub(1)
            ));
        }
        Ok(Self { index, count })
    }

    /// Whether a case belongs to this partition.
    pub fn holds(self, case: &CaseId) -> bool {
        Self::of(case, self.count) == self.index
    }

    /// The partition that a case belongs to.
    pub(crate) fn of(case: &CaseId, count: u32) -> u32 {
        let digits = files::sha256_hex(case.as_str().as_bytes());
        let hash = u64::from_str_radix(&digits[..16], 16).unwrap_or(0);
        (hash % u64::from(count.max(1))) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, environment: &[(&str, &str)], want: Option<(u32, u32)>) {
        let variable = |name: &str| {
            environment.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
        };
        let got = Partition::read(text, &variable).ok().map(|partition| (partition.index, partition.count));
        assert_eq!(got, want, "{text} with {environment:?}");
    }

    #[test]
    fn a_partition_is_counted_from_zero() {
        check("0/4", &[], Some((0, 4)));
        check("3/4", &[], Some((3, 4)));
        for wrong in ["4/4", "0/0", "1", "-1/4", "a/4", "1/b", "", "auto", "auto/4"] {
            check(wrong, &[], None);
        }
    }

    #[test]
    fn schedulers_say_which_partitionition_this_is() {
        let slurm =
            [("SLURM_ARRAY_TASK_ID", "3"), ("SLURM_ARRAY_TASK_COUNT", "8"), ("SLURM_ARRAY_TASK_MIN", "1")];
        check("auto", &slurm, Some((2, 8)));
        check("auto/16", &slurm, Some((2, 16)));
        let every_tenth = [
            ("SLURM_ARRAY_TASK_ID", "20"),
            ("SLURM_ARRAY_TASK_COUNT", "5"),
            ("SLURM_ARRAY_TASK_MIN", "0"),
            ("SLURM_ARRAY_TASK_STEP", "10"),
        ];
        check("auto", &every_tenth, Some((2, 5)));
        check("auto/4", &[("JOB_COMPLETION_INDEX", "3")], Some((3, 4)));
        check("auto", &[("JOB_COMPLETION_INDEX", "3")], None);
    }

    #[test]
    fn every_case_belongs_to_one_partition_and_no_one_is_far_from_its_share() {
        let mut held = [0; 8];
        for case in 0..4000 {
            let case = CaseId::new(format!("case-{case}")).unwrap();
            let owners: Vec<u32> =
                (0..8).filter(|&index| Partition { index, count: 8 }.holds(&case)).collect();
            assert_eq!(owners.len(), 1);
            held[owners[0] as usize] += 1;
        }
        assert!(held.iter().all(|n| (400..600).contains(n)), "{held:?}");
    }
}
