//! Which of vb2's three kinds of memory a driver uses, as far as the modules tell: a driver whose module uses one of them,
//! and no other, has no queue of another kind.

use std::fs;
use std::path::Path;

use nix::sys::stat::{major, minor};

use super::Importer;

/// How the queues of the device `device` (`st_rdev`) use what they import; `None` where its driver's module uses several of
/// vb2's kinds of memory, or is built in.
#[must_use]
pub fn importer_of(device: u64) -> Option<Importer> {
    let (major, minor) = (major(device), minor(device));
    let driver = format!("/sys/dev/char/{major}:{minor}/device/driver/module");
    let module = fs::read_link(driver).ok()?;
    let holds = |kind: &str| {
        let holders = Path::new("/sys/module").join(kind).join("holders");
        module
            .file_name()
            .is_some_and(|module| holders.join(module).exists())
    };
    let kinds = ["videobuf2_vmalloc", "videobuf2_dma_contig", "videobuf2_dma_sg"].map(holds);
    match kinds {
        [true, false, false] => Some(Importer::Vmalloc),
        [false, true, false] => Some(Importer::Contiguous),
        [false, false, true] => Some(Importer::Scattered),
        _ => None,
    }
}
