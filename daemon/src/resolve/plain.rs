//! What is left: memory that the client's address space leads to, or nothing does.

use std::ops::Range;

use super::{Found, Look};
use crate::sys::Vma;

/// As status, log and `explain` call it.
pub(super) const NAME: &str = "memory";

/// One page of it is touched: device memory (`VM_IO`, `VM_PFNMAP`) is mapped but out of reach.
pub(super) fn find(look: &Look<'_>, vma: &Vma, range: &Range<u64>, allowed: bool) -> (&'static str, Found) {
    let name = String::from_utf8_lossy(&vma.name);
    let what = match &*name {
        "" => "anonymous memory".to_owned(),
        name => format!("memory of {name}"),
    };
    let mut found = Found::memory(what);
    if !allowed {
        found.copy = Err("the mapping is read-only".to_owned());
    } else if look.client.touch(range.start).is_err() {
        found.copy = Err("it is device memory, or nothing that can be read".to_owned());
    }
    (NAME, found)
}
