//! Where ranks meet: a thread that adds up what they send, in the order of their numbers.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Read, Write},
    os::unix::net::{UnixListener, UnixStream},
    sync::mpsc,
    thread,
};

/// What `datatype` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    Float32,
    Float64,
}

impl Number {
    pub fn of(number: u32) -> Option<Self> {
        match number {
            7 => Some(Self::Float32),
            8 => Some(Self::Float64),
            _ => None,
        }
    }

    pub fn bytes(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::Float64 => 8,
        }
    }

    /// Adds numbers to others.
    fn add(self, to: &mut [u8], from: &[u8]) {
        for (to, from) in to.chunks_exact_mut(self.bytes()).zip(from.chunks_exact(self.bytes())) {
            match self {
                Self::Float32 => {
                    let [a, b] = [&*to, from]
                        .map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
                    to.copy_from_slice(&(a + b).to_le_bytes());
                }
                Self::Float64 => {
                    let read = |bytes: &[u8]| {
                        let mut number = [0; 8];
                        number.copy_from_slice(bytes);
                        f64::from_le_bytes(number)
                    };
                    let sum = read(to) + read(from);
                    to.copy_from_slice(&sum.to_le_bytes());
                }
            }
        }
    }
}

/// One sum on its way to the meeting, or back.
pub struct Message {
    /// Its place among the sums of the communicator.
    pub turn: u64,
    /// As [`Number`].
    pub number: u32,
    pub bytes: Vec<u8>,
}

impl Message {
    pub fn send(&self, to: &mut impl Write) -> io::Result<()> {
        let head = [self.turn, self.number.into(), self.bytes.len() as u64].map(u64::to_le_bytes);
        to.write_all(head.as_flattened())?;
        to.write_all(&self.bytes)
    }

    /// What stands for the type of numbers of which ranks sent different ones.
    pub const DIFFERENT: u32 = u32::MAX;

    /// The sum of what all ranks sent.
    fn sum(turn: u64, messages: impl Iterator<Item = Self>) -> Self {
        let joined = messages.map(Some).reduce(|sum, message| {
            let (mut sum, message) = (sum?, message?);
            let same = (sum.number, sum.bytes.len()) == (message.number, message.bytes.len());
            let number = Number::of(sum.number).filter(|_| same)?;
            number.add(&mut sum.bytes, &message.bytes);
            Some(sum)
        });
        joined.flatten().unwrap_or(Self { turn, number: Self::DIFFERENT, bytes: Vec::new() })
    }

    pub fn receive(from: &mut impl Read) -> io::Result<Self> {
        let mut head = [[0; 8]; 3];
        from.read_exact(head.as_flattened_mut())?;
        let [turn, number, len] = head.map(u64::from_le_bytes);
        let mut bytes = vec![0; len as usize];
        from.read_exact(&mut bytes)?;
        Ok(Self { turn, number: number as u32, bytes })
    }
}

/// What a rank says first.
pub struct Hello {
    pub rank: u32,
    pub n_ranks: u32,
    pub device: u32,
}

impl Hello {
    pub fn send(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all([self.rank, self.n_ranks, self.device].map(u32::to_le_bytes).as_flattened())
    }

    pub fn receive(from: &mut impl Read) -> io::Result<Self> {
        let mut numbers = [[0; 4]; 3];
        from.read_exact(numbers.as_flattened_mut())?;
        let [rank, n_ranks, device] = numbers.map(u32::from_le_bytes);
        Ok(Self { rank, n_ranks, device })
    }
}

/// Lets the ranks in and adds up what they send, until one of them leaves.
pub fn hold(listener: &UnixListener) -> io::Result<()> {
    let mut met: Vec<(Hello, UnixStream)> = Vec::new();
    let mut n_ranks = 1;
    while met.len() < n_ranks {
        let (mut stream, _) = listener.accept()?;
        let hello = Hello::receive(&mut stream)?;
        n_ranks = hello.n_ranks as usize;
        met.push((hello, stream));
    }
    met.sort_by_key(|(hello, _)| hello.rank);
    let numbered =
        met.iter().zip(0..).all(|((hello, _), rank)| (hello.rank, hello.n_ranks as usize) == (rank, n_ranks));
    let mut devices: Vec<u32> = met.iter().map(|(hello, _)| hello.device).collect();
    devices.sort_unstable();
    devices.dedup();
    let may_meet = numbered && devices.len() == n_ranks;
    let mut streams: Vec<UnixStream> = met.into_iter().map(|(_, stream)| stream).collect();
    for stream in &mut streams {
        stream.write_all(&[may_meet.into()])?;
    }
    if may_meet { add_up(&mut streams) } else { Ok(()) }
}

/// The sums of ranks that have met.
fn add_up(streams: &mut [UnixStream]) -> io::Result<()> {
    let (sender, received) = mpsc::channel();
    for (rank, stream) in streams.iter().enumerate() {
        let (mut stream, sender) = (stream.try_clone()?, sender.clone());
        thread::spawn(move || {
            // The end of a rank is an error too; it ends the meeting.
            while sender.send((rank, Message::receive(&mut stream))).is_ok() {}
        });
    }
    let mut open: HashMap<u64, BTreeMap<usize, Message>> = HashMap::new();
    while let Ok((rank, message)) = received.recv() {
        let message = message?;
        let turn = message.turn;
        let messages = open.entry(turn).or_default();
        messages.insert(rank, message);
        if messages.len() < streams.len() {
            continue;
        }
        let sum = Message::sum(turn, open.remove(&turn).unwrap_or_default().into_values());
        for stream in &mut *streams {
            sum.send(stream)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{net::Shutdown, os::linux::net::SocketAddrExt, os::unix::net::SocketAddr};

    use super::*;

    /// Sends these as the first words of ranks; what comes back to each: whether it may stay.
    fn meet(name: &str, hellos: &[[u32; 3]]) -> (Vec<UnixStream>, Vec<u8>) {
        let name = format!("cuda-emulator-test-{name}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(name).unwrap();
        let listener = UnixListener::bind_addr(&address).unwrap();
        thread::spawn(move || hold(&listener));
        let mut streams: Vec<UnixStream> =
            hellos.iter().map(|_| UnixStream::connect_addr(&address).unwrap()).collect();
        for (stream, &[rank, n_ranks, device]) in streams.iter_mut().zip(hellos) {
            Hello { rank, n_ranks, device }.send(stream).unwrap();
        }
        let mut answer = [0];
        let answers = streams.iter_mut().map(|stream| {
            stream.read_exact(&mut answer).unwrap();
            answer[0]
        });
        let answers = answers.collect();
        (streams, answers)
    }

    #[test]
    fn sums_come_back_to_every_rank_turn_by_turn() {
        let (mut ranks, answers) = meet("sums", &[[2, 3, 2], [0, 3, 0], [1, 3, 1]]);
        assert_eq!(answers, [1, 1, 1]);
        let numbers = |rank: f32| [1.0 + rank, 10.0 * rank].map(f32::to_le_bytes).concat();
        // One rank is a turn ahead.
        for (index, turns) in [(0, [1, 0]), (1, [0, 1]), (2, [0, 1])] {
            for turn in turns {
                let bytes = numbers(index as f32);
                Message { turn, number: 7, bytes }.send(&mut ranks[index]).unwrap();
            }
        }
        let want = [6.0f32, 30.0].map(f32::to_le_bytes).concat();
        for rank in &mut ranks {
            let mut got: Vec<_> = (0..2).map(|_| Message::receive(rank).unwrap()).collect();
            got.sort_by_key(|message| message.turn);
            assert!(got.iter().zip(0..).all(|(message, turn)| message.turn == turn && message.bytes == want));
        }
        ranks[0].shutdown(Shutdown::Both).unwrap();
    }

    #[test]
    fn ranks_that_may_not_meet_are_told_so() {
        assert_eq!(meet("one number", &[[0, 2, 0], [0, 2, 1]]).1, [0, 0]);
        assert_eq!(meet("one GPU", &[[0, 2, 0], [1, 2, 0]]).1, [0, 0]);
        assert_eq!(meet("beyond", &[[0, 2, 0], [2, 2, 1]]).1, [0, 0]);
    }

    #[test]
    fn ranks_that_add_up_different_numbers_are_told_so() {
        let (mut ranks, _) = meet("different", &[[0, 2, 0], [1, 2, 1]]);
        for (rank, n_bytes) in ranks.iter_mut().zip([4, 8]) {
            Message { turn: 0, number: 7, bytes: vec![0; n_bytes] }.send(rank).unwrap();
        }
        assert_eq!(Message::receive(&mut ranks[1]).unwrap().number, Message::DIFFERENT);
    }
}
