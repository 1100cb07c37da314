//! temp
use super::{Mapping, MemoryFault};
/// temp
pub fn copy(_f: &Mapping, _fo: usize, _t: &Mapping, _to: usize, _l: usize) -> Result<(), MemoryFault> {
    Err(MemoryFault::Fault)
}
