//! What stands behind a stretch of a process's memory, and what would become of it: the answer to "why is this copied?"
//! and "why EFAULT?". Asked of a process by itself, without a daemon: what is found is of that moment.

use std::fs;
use std::io;
use std::path::Path;

use serde::Serialize;

use super::native::{self, Facts, Native};
use crate::client::{BlockedThread, Clients};
use crate::resolve::{
    Access, Behind, CopyBy, Found, Importer, Look, OwnBuffers, Policy, Segment, examine_all,
};
use crate::sys::Vma;

/// What is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// The process, or a thread of it.
    pub pid: u32,
    /// First byte.
    pub client_addr: u64,
    /// bytes
    pub length: u32,
    /// What a device would do with them.
    pub access: Access,
    /// For these kinds of queue.
    pub importers: Vec<Importer>,
    /// What may be imported.
    pub policy: Policy,
}

/// Why there is no answer. Each message is one sentence for the person who asked.
#[derive(Debug, thiserror::Error)]
pub enum ExplainError {
    /// No such process.
    #[error("there is no process {0}")]
    NoProcess(u32),
    /// Not for this user.
    #[error("process {0} may not be looked at; only root may look at any")]
    Denied(u32),
    /// A kernel thread, or a process that is ending.
    #[error("process {0} has no memory: it is a kernel thread, or ends")]
    NoMemory(u32),
    /// Anything else.
    #[error("process {pid} cannot be looked at ({source})")]
    System {
        /// The process.
        pid: u32,
        /// Why.
        source: io::Error,
    },
}

/// The way that a stretch would go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The device gets the client's memory itself.
    Imported,
    /// Through the client's address space.
    CopiedThroughMemory,
    /// Through a mapping of the same object in the daemon.
    CopiedThroughObject,
    /// Not at all.
    Fault,
}

/// What would become of a mapping's part in one kind of queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outcome {
    /// E.g. `vmalloc queue`.
    pub queue: String,
    /// The way.
    pub way: Way,
    /// Why no better one.
    pub why: Option<String>,
}

/// A mapping in the stretch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Mapping {
    /// First address of the mapping.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// The part of the mapping that was asked for: first address.
    pub from: u64,
    /// First address behind that part.
    pub to: u64,
    /// As `/proc/PID/maps` writes them.
    pub permissions: String,
    /// As `/proc/PID/maps` writes it; empty without one.
    pub name: String,
    /// Which kind of memory it is.
    pub kind: String,
    /// What was found.
    pub what: String,
    /// What the real node would make of it.
    pub native: Native,
    /// By kind of queue.
    pub outcomes: Vec<Outcome>,
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// The process.
    pub pid: u32,
    /// First byte.
    pub client_addr: u64,
    /// bytes
    pub length: u32,
    /// In the order of addresses.
    pub mappings: Vec<Mapping>,
    /// From here on nothing is mapped.
    pub hole: Option<u64>,
}

impl Explanation {
    /// Would every kind of queue that was asked about be served?
    #[must_use]
    pub fn is_served(&self) -> bool {
        let mut outcomes = self.mappings.iter().flat_map(|mapping| &mapping.outcomes);
        self.hole.is_none() && outcomes.all(|outcome| outcome.way != Way::Fault)
    }

    /// Would the real node take the pointer?
    #[must_use]
    pub fn is_native(&self) -> bool {
        self.hole.is_none() && self.mappings.iter().all(|mapping| mapping.native.ok)
    }
}

/// Looks.
///
/// # Errors
/// See [`ExplainError`]. Memory that cannot be served is none: that is what one wants to know.
pub fn explain(question: &Question) -> Result<Explanation, ExplainError> {
    let pid = question.pid;
    let client = client(pid)?;
    let own = OwnBuffers::default();
    let kernel = native::kernel();
    let mut mappings: Vec<Mapping> = Vec::new();
    let mut hole = None;
    for importer in &question.importers {
        let look = Look {
            client: &client,
            access: question.access,
            importer: *importer,
            policy: &question.policy,
            own: &own,
        };
        let behind = examine_all(&look, question.client_addr, question.length);
        let covered = behind
            .segments
            .last()
            .map_or(question.client_addr, |last| last.range.end);
        if covered < question.client_addr.saturating_add(u64::from(question.length)) {
            hole = Some(covered);
        }
        let outcomes = outcomes(&behind, question.length, hole.is_some(), *importer);
        for (segment, outcome) in behind.segments.iter().zip(outcomes) {
            // The process runs on: a mapping that was not there a moment ago is shown as well.
            let known = mappings
                .iter_mut()
                .find(|known| known.from == segment.range.start);
            match known {
                Some(known) => known.outcomes.push(outcome),
                None => mappings.push(mapping(question, segment, kernel, outcome)),
            }
        }
    }
    Ok(Explanation {
        pid,
        client_addr: question.client_addr,
        length: question.length,
        mappings,
        hole,
    })
}

/// The process is not blocked in a call of ours, so what is seen may be over by the time that it is printed.
fn client(pid: u32) -> Result<BlockedThread, ExplainError> {
    let error = |source: io::Error| match source.kind() {
        io::ErrorKind::PermissionDenied => ExplainError::Denied(pid),
        // A kernel thread has a folder, and nothing that can be opened in it.
        io::ErrorKind::NotFound if Path::new(&format!("/proc/{pid}/maps")).exists() => {
            ExplainError::NoMemory(pid)
        }
        io::ErrorKind::NotFound => ExplainError::NoProcess(pid),
        _ if source.raw_os_error() == Some(libc::ESRCH) => ExplainError::NoMemory(pid),
        _ => ExplainError::System { pid, source },
    };
    let client = Clients::default().of_thread(pid).map_err(error)?;
    let maps = fs::read(format!("/proc/{pid}/maps")).map_err(error)?;
    match maps.is_empty() {
        true => Err(ExplainError::NoMemory(pid)),
        false => Ok(client),
    }
}

fn mapping(question: &Question, segment: &Segment, kernel: (u32, u32), outcome: Outcome) -> Mapping {
    let Segment {
        vma,
        range,
        kind,
        found,
    } = segment;
    let flags = native::flags(question.pid, vma.start).unwrap_or_default();
    let native = Native::of(&Facts {
        vma,
        flags: &flags,
        backing: &native::backing(question.pid, vma),
        access: question.access,
        kernel,
    });
    Mapping {
        start: vma.start,
        end: vma.end,
        from: range.start,
        to: range.end,
        permissions: permissions(vma, &flags),
        name: String::from_utf8_lossy(&vma.name).into_owned(),
        kind: (*kind).to_owned(),
        what: found.what.clone(),
        native,
        outcomes: vec![outcome],
    }
}

fn permissions(vma: &Vma, flags: &[String]) -> String {
    let letter = |set, letter| if set { letter } else { '-' };
    [
        letter(vma.readable, 'r'),
        letter(vma.writable, 'w'),
        letter(flags.iter().any(|flag| flag == "ex"), 'x'),
        if vma.shared { 's' } else { 'p' },
    ]
    .iter()
    .collect()
}

/// What becomes of each segment, as `session` serves it: imported where all of the stretch is one dma-buf from its
/// start; where one segment can be had in no way, nothing is.
fn outcomes(behind: &Behind, length: u32, hole: bool, importer: Importer) -> Vec<Outcome> {
    let whole = match hole {
        true => Err("a driver takes one dma-buf for a plane, and a part of it is not mapped".to_owned()),
        false => behind.importable(length).map(drop),
    };
    let outcome = |segment: &Segment| {
        let (way, why) = way(&segment.found, &whole);
        Outcome {
            queue: importer.to_string(),
            way,
            why,
        }
    };
    behind.segments.iter().map(outcome).collect()
}

fn way(found: &Found, whole: &Result<(), String>) -> (Way, Option<String>) {
    let no_import = match (&found.import, whole) {
        (Ok(_), Ok(())) => return (Way::Imported, None),
        // What stands in the way of this part, before what stands in that of the whole.
        (Err(reason), _) | (Ok(_), Err(reason)) => reason.clone(),
    };
    match &found.copy {
        Ok(CopyBy::Memory) => (Way::CopiedThroughMemory, Some(no_import)),
        Ok(CopyBy::Object { .. }) => (Way::CopiedThroughObject, Some(no_import)),
        // Of plain memory nobody expects an import.
        Err(no_copy) if found.import.as_ref().err() == Found::memory("").import.err().as_ref() => {
            (Way::Fault, Some(no_copy.clone()))
        }
        Err(no_copy) => (Way::Fault, Some(format!("{no_copy}; {no_import}"))),
    }
}

#[cfg(test)]
mod tests;
