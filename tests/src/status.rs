//! What the daemon says of its buffers: the answer of `vidcompat status --json`, asked for without a new process, which
//! takes a third of a second under an emulator.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, bail};
use nix::unistd::Pid;
use serde_json::Value;

use crate::client::AT_ONCE;
use crate::video::Node;

/// How a buffer is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The device has the client's own memory.
    Imported,
    /// The same, where the client shim has exchanged the memory.
    Adopted,
    /// By a copy.
    Copied,
}

/// A plane, as status tells of it.
#[derive(Clone, Debug)]
pub struct Plane {
    /// The way.
    pub how: How,
    /// What was found, and why it is copied.
    pub told: String,
    /// The counters of its queue.
    counters: Value,
}

impl Plane {
    /// A counter of its queue, e.g. `through_object`.
    pub fn counter(&self, name: &str) -> u64 {
        self.counters[name].as_u64().unwrap_or_default()
    }
}

fn ask() -> anyhow::Result<Value> {
    let mut stream = UnixStream::connect("/run/vidcompat/control.sock")?;
    stream.set_read_timeout(Some(AT_ONCE))?;
    stream.write_all(b"{\"ask\":\"status\"}\n")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    let answer: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
    Ok(answer["status"].clone())
}

/// What became of restarts.
pub fn survival() -> anyhow::Result<Value> {
    Ok(ask()?["survival"].clone())
}

/// The only queue of this type (`video capture`) that a process has on our node.
pub fn queue(node: Node, pid: Pid, buf_type: &str) -> anyhow::Result<Value> {
    let status = ask()?;
    let device = find(&status, "devices", "node", node.to_string().into())?;
    let file = find(&device, "files", "pid", pid.as_raw().into())?;
    find(&file, "queues", "buf_type", buf_type.into())
}

fn find(of: &Value, list: &str, key: &str, value: Value) -> anyhow::Result<Value> {
    let found = of[list]
        .as_array()
        .into_iter()
        .flatten()
        .find(|each| each[key] == value);
    found
        .cloned()
        .with_context(|| format!("none of {list} has {key} {value}: {of}"))
}

/// Buffer 0 of the only queue of this type (`video capture`) that this process has on our node.
pub fn of_buffer(node: Node, buf_type: &str) -> anyhow::Result<Plane> {
    plane(&queue(node, Pid::this(), buf_type)?)
}

/// Buffer 0 of a queue.
pub fn plane(queue: &Value) -> anyhow::Result<Plane> {
    let buffer = find(queue, "buffers", "index", 0.into())?;
    let plane = &buffer["planes"][0];
    let text = |key: &str| plane[key].as_str().unwrap_or_default();
    Ok(Plane {
        how: match plane["how"].as_str() {
            Some("imported") => How::Imported,
            Some("adopted") => How::Adopted,
            Some("copied") => How::Copied,
            other => bail!("{other:?}: {buffer}"),
        },
        told: [text("what"), text("why")].join("; "),
        counters: queue["counters"].clone(),
    })
}
