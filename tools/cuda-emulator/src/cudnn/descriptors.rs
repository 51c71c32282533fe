//! The tables of handles and descriptors, and what may be done with them when.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard},
};

use super::{
    Checked, Refusal,
    attributes::{
        Attribute, ENGINE_NUMERICAL_NOTE, ENGINECFG_ENGINE, ENGINEHEUR_RESULTS,
        EXECUTION_PLAN_WORKSPACE_SIZE, Elements, KINDS, Kind, SETTABLE,
    },
    content::{Content, Engine, VariantPack, build},
    convolution::Launch,
    refusal,
};
use crate::driver::{Handle, Table, lock};

/// Everything the process has of cuDNN.
pub struct Library {
    /// With their streams.
    handles: Table<Handle>,
    descriptors: Table<Descriptor>,
}

pub struct Descriptor {
    pub kind: Kind,
    /// What was set, each number as 8 bytes.
    values: HashMap<u32, Vec<u64>>,
    /// Present once finalised.
    content: Option<Content>,
    /// The descriptors that the content was made of.
    parts: Vec<Handle>,
}

/// What an attribute that is asked for holds.
pub enum Answer {
    /// Bytes of one, and all.
    Numbers(usize, Vec<u64>),
    /// What descriptors of this kind are to be filled with.
    Engines(Kind, Vec<Engine>),
}

static LIBRARY: Mutex<Library> =
    Mutex::new(Library { handles: Table::new(0xd22), descriptors: Table::new(0xd23) });

/// The library, for the caller alone.
pub fn library() -> MutexGuard<'static, Library> {
    lock(&LIBRARY)
}

impl Library {
    pub fn create_handle(&mut self) -> Handle {
        self.handles.add(0)
    }

    pub fn destroy_handle(&mut self, handle: Handle) -> Checked {
        self.handles.remove(handle).map(drop).ok_or_else(|| no_handle(handle))
    }

    pub fn set_stream(&mut self, handle: Handle, stream: Handle) -> Checked {
        *self.handles.get_mut(handle).ok_or_else(|| no_handle(handle))? = stream;
        Ok(())
    }

    fn stream(&self, handle: Handle) -> Checked<Handle> {
        self.handles.get(handle).copied().ok_or_else(|| no_handle(handle))
    }

    pub fn create(&mut self, number: u32) -> Checked<Handle> {
        let Some(kind) = KINDS.into_iter().find(|&kind| kind as u32 == number) else {
            return Err(refusal!(NotSupported, "descriptors of type {number} are not emulated"));
        };
        let (values, content, parts) = (HashMap::new(), None, Vec::new());
        Ok(self.descriptors.add(Descriptor { kind, values, content, parts }))
    }

    pub fn destroy(&mut self, id: Handle) -> Checked {
        self.descriptors.remove(id).map(drop).ok_or_else(|| no_descriptor(id))
    }

    fn descriptor(&self, id: Handle) -> Checked<&Descriptor> {
        self.descriptors.get(id).ok_or_else(|| no_descriptor(id))
    }

    fn descriptor_mut(&mut self, id: Handle) -> Checked<&mut Descriptor> {
        self.descriptors.get_mut(id).ok_or_else(|| no_descriptor(id))
    }

    /// What a descriptor holds that is finished, with all it refers to.
    pub fn content(&self, id: Handle) -> Checked<&Content> {
        let Descriptor { kind, content, parts, .. } = self.descriptor(id)?;
        for &part in parts {
            self.content(part)?;
        }
        content.as_ref().ok_or_else(|| refusal!(NotFinalized, "a {kind:?} is not finalised"))
    }

    /// The attribute that a caller may set now, in this way.
    pub fn settable(&self, id: Handle, name: u32, elements: u32, count: i64) -> Checked<&'static Attribute> {
        let Descriptor { kind, content, .. } = self.descriptor(id)?;
        if content.is_some() {
            return Err(refusal!(NotInitialized, "attribute {name} is set of a {kind:?} already finalised"));
        }
        let found = SETTABLE.iter().find(|attribute| attribute.number == name && attribute.of == *kind);
        let Some(attribute) = found else {
            return Err(refusal!(BadParam, "a {kind:?} has no attribute {name} that is emulated"));
        };
        let Attribute { name, elements: wanted, count: wanted_count, .. } = attribute;
        if elements != *wanted as u32 {
            return Err(refusal!(AttributeType, "{name} is {wanted:?}, not of type {elements}"));
        }
        if count != *wanted_count {
            return Err(refusal!(BadParam, "{name} has {count} elements, not {wanted_count}"));
        }
        Ok(attribute)
    }

    /// Sets an attribute that was found to be [`settable`](Self::settable).
    pub fn set(&mut self, id: Handle, attribute: &Attribute, values: Vec<u64>) -> Checked {
        self.check(attribute, &values)?;
        self.descriptor_mut(id)?.values.insert(attribute.number, values);
        Ok(())
    }

    /// Refuses handles and parts that cannot be used.
    fn check(&self, attribute: &Attribute, values: &[u64]) -> Checked {
        let Attribute { name, parts, .. } = attribute;
        for id in values.iter().map(|&value| value as Handle) {
            match attribute.elements {
                Elements::Handle => {
                    self.stream(id)?;
                }
                Elements::Descriptor => {
                    let kind = self.descriptor(id)?.kind;
                    if !parts.contains(&kind) {
                        return Err(refusal!(DescriptorType, "{name} is a {kind:?}, not one of {parts:?}"));
                    }
                    self.content(id)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    pub fn get(&self, id: Handle, name: u32, elements: u32) -> Checked<Answer> {
        let Descriptor { kind, content, .. } = self.descriptor(id)?;
        if content.is_none() {
            return Err(refusal!(NotInitialized, "a {kind:?} is not finalised"));
        }
        let (wanted, answer) = match (kind, name, self.content(id)?) {
            (Kind::Heuristics, ENGINEHEUR_RESULTS, Content::Heuristics(engines)) => {
                (Elements::Descriptor, Answer::Engines(Kind::EngineConfig, engines.clone()))
            }
            (Kind::EngineConfig, ENGINECFG_ENGINE, Content::Engine(engine)) => {
                (Elements::Descriptor, Answer::Engines(Kind::Engine, vec![*engine]))
            }
            (Kind::Engine, ENGINE_NUMERICAL_NOTE, Content::Engine(engine)) => {
                (Elements::NumericalNote, Answer::Numbers(4, engine.notes()))
            }
            (Kind::ExecutionPlan, EXECUTION_PLAN_WORKSPACE_SIZE, Content::Plan(engine)) => {
                (Elements::Int64, Answer::Numbers(8, vec![engine.algorithm.workspace() as u64]))
            }
            _ => return Err(refusal!(NotSupported, "attribute {name} of a {kind:?} is not emulated")),
        };
        if elements != wanted as u32 {
            return Err(refusal!(AttributeType, "attribute {name} is {wanted:?}, not of type {elements}"));
        }
        Ok(answer)
    }

    /// Copies engines that were got of `from` into the descriptors that a caller made for them.
    pub fn fill(&mut self, from: Handle, kind: Kind, ids: &[u64], engines: &[Engine]) -> Checked {
        let parts = self.descriptor(from)?.parts.clone();
        for (&id, &engine) in ids.iter().zip(engines) {
            let descriptor = self.descriptor_mut(id as Handle)?;
            if descriptor.kind != kind {
                return Err(refusal!(DescriptorType, "a {:?} is to hold a {kind:?}", descriptor.kind));
            }
            if descriptor.content.is_some() {
                return Err(refusal!(BadParam, "a {kind:?} to be filled is filled already"));
            }
            (descriptor.content, descriptor.parts) = (Some(Content::Engine(engine)), parts.clone());
        }
        Ok(())
    }

    pub fn finalize(&mut self, id: Handle) -> Checked {
        let descriptor = self.descriptor(id)?;
        let kind = descriptor.kind;
        if descriptor.content.is_some() {
            return Err(refusal!(BadParam, "a {kind:?} is finalised twice"));
        }
        let mut parts = Vec::new();
        for attribute in SETTABLE.iter().filter(|attribute| attribute.of == kind) {
            let Some(values) = descriptor.values.get(&attribute.number) else {
                return Err(refusal!(BadParam, "{} of a {kind:?} is not set", attribute.name));
            };
            // They may have been destroyed since.
            self.check(attribute, values)?;
            if attribute.elements == Elements::Descriptor {
                parts.extend(values.iter().map(|&part| part as Handle));
            }
        }
        let content = build(self, descriptor)?;
        let descriptor = self.descriptor_mut(id)?;
        (descriptor.content, descriptor.parts) = (Some(content), parts);
        Ok(())
    }

    /// What a plan does with the tensors of a variant pack, and in which stream.
    pub fn launch(&self, handle: Handle, plan: Handle, pack: Handle) -> Checked<(Handle, Launch)> {
        let stream = self.stream(handle)?;
        let Content::Plan(Engine { graph, algorithm }) = self.content(plan)? else {
            return Err(refusal!(DescriptorType, "{plan:#x} is no execution plan"));
        };
        let Content::VariantPack(VariantPack { ids, pointers, workspace }) = self.content(pack)? else {
            return Err(refusal!(DescriptorType, "{pack:#x} is no variant pack"));
        };
        if graph.handle != handle {
            return Err(refusal!(BadParam, "the plan was made with another handle"));
        }
        let mut addresses = [0; 3];
        for (address, tensor) in addresses.iter_mut().zip(&graph.operation.tensors) {
            let Some(index) = ids.iter().position(|&id| id == tensor.id) else {
                return Err(refusal!(BadParam, "the variant pack has no tensor {}, only {ids:?}", tensor.id));
            };
            *address = pointers[index];
        }
        Ok((stream, Launch::new(graph.operation, *algorithm, addresses, *workspace)?))
    }
}

impl Descriptor {
    /// An attribute, of which there is one element.
    pub fn one(&self, name: u32) -> Checked<u64> {
        self.some(name).map(|[value]| value)
    }

    pub fn some<const N: usize>(&self, name: u32) -> Checked<[u64; N]> {
        let values = self.values.get(&name).and_then(|values| values.as_slice().try_into().ok());
        values.ok_or_else(|| refusal!(InternalError, "attribute {name} has not {N} elements"))
    }

    pub fn integers<const N: usize>(&self, name: u32) -> Checked<[i64; N]> {
        Ok(self.some(name)?.map(|value| value as i64))
    }
}

fn no_handle(id: Handle) -> Refusal {
    refusal!(NotInitialized, "{id:#x} is no handle, or was destroyed")
}

fn no_descriptor(id: Handle) -> Refusal {
    refusal!(BadParam, "{id:#x} is no descriptor, or was destroyed")
}
