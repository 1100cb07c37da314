//! What clients see: requests of a node turned into calls of sessions.

mod argument;
pub mod fb;
pub mod shim;
pub mod video;

/// What became of the files of a node that a daemon before us has had open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// So many go on.
    pub files: usize,
    /// Why the others do not: a sentence for each.
    pub lost: Vec<String>,
    /// It is not known who sleeps on one of them, so only the end of the node wakes them.
    pub sleepers_unknown: bool,
}
