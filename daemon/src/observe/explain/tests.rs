use super::{Access, ExplainError, Mapping, Outcome, Question, Way, explain, outcomes};
use crate::resolve::{Behind, CopyBy, Found, Importable, Importer, Policy, Segment};
use crate::sys::Vma;
use std::fs::File;
use std::sync::Arc;

fn dma_buf(offset: u64, size: u64) -> Found {
    let file = || File::open("/dev/null").expect("everywhere");
    Found {
        what: "dma-buf 17 (system)".to_owned(),
        import: Ok(Importable {
            fd: Arc::new(file().into()),
            exporter: "system".to_owned(),
            inode: 17,
            size,
            offset,
        }),
        copy: Ok(CopyBy::Object {
            file: Arc::new(file()),
            offset: 0,
            skip: offset,
            sync: true,
        }),
        frame: None,
        flush: None,
    }
}

fn nothing(import: &str, copy: &str) -> Found {
    Found {
        import: Err(import.to_owned()),
        copy: Err(copy.to_owned()),
        ..Found::memory("?")
    }
}

/// What becomes of 8192 bytes from 0x1000, a page or two in each of `found`.
fn ways(found: Vec<Found>, hole: bool) -> Vec<(Way, String)> {
    let pages = 2 / u64::try_from(found.len()).expect("few");
    let segments = (0_u64..).zip(found).map(|(at, found)| {
        let range = 0x1000 * (1 + at * pages)..0x1000 * (1 + (at + 1) * pages);
        Segment {
            vma: Vma {
                start: range.start,
                end: range.end,
                readable: true,
                writable: true,
                shared: true,
                offset: 0,
                device: (0, 1),
                inode: 17,
                name: Vec::new(),
            },
            range,
            kind: "dma-buf",
            found,
        }
    });
    let behind = Behind {
        segments: segments.collect(),
    };
    outcomes(&behind, 8192, hole, Importer::Vmalloc)
        .into_iter()
        .map(|Outcome { way, why, .. }| (way, why.unwrap_or_default()))
        .collect()
}

#[test]
fn a_dma_buf_that_is_all_of_the_range_is_imported() {
    assert_eq!(
        ways(vec![dma_buf(0, 8192)], false),
        [(Way::Imported, String::new())]
    );
}

#[test]
fn an_inner_offset_a_short_dma_buf_and_a_second_mapping_are_copied_and_say_so() {
    let only = |found| ways(vec![found], false).remove(0);
    let (way, why) = only(dma_buf(4096, 1 << 20));
    assert_eq!(way, Way::CopiedThroughObject);
    assert!(why.contains("begins 4096 bytes into the dma-buf"), "{why}");
    let (way, why) = only(dma_buf(0, 4096));
    assert_eq!(way, Way::CopiedThroughObject);
    assert!(why.contains("ends after 4096 bytes"), "{why}");
    let both = ways(vec![dma_buf(0, 8192), Found::memory("anonymous memory")], false);
    assert_eq!(both[0].0, Way::CopiedThroughObject);
    assert!(both[0].1.contains("one dma-buf for a plane"), "{}", both[0].1);
    assert_eq!(
        both[1],
        (Way::CopiedThroughMemory, "plain memory is copied".to_owned())
    );
}

#[test]
fn what_can_be_had_in_no_way_faults_with_both_reasons() {
    let (way, why) = ways(vec![nothing("forbidden", "out of reach")], false).remove(0);
    assert_eq!((way, &*why), (Way::Fault, "out of reach; forbidden"));
    // An import that is only possible for the whole does not serve a part.
    let no_copy = || Found {
        copy: Err("out of reach".to_owned()),
        ..dma_buf(0, 8192)
    };
    assert_eq!(ways(vec![no_copy()], false)[0].0, Way::Imported);
    assert_eq!(ways(vec![no_copy()], true)[0].0, Way::Fault);
    assert_eq!(ways(vec![no_copy(), no_copy()], false)[1].0, Way::Fault);
}

fn ask(pid: u32, client_addr: u64, length: u32, access: Access) -> Question {
    Question {
        pid,
        client_addr,
        length,
        access,
        importers: vec![Importer::Vmalloc, Importer::Contiguous],
        policy: Policy::default(),
    }
}

fn addr(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.as_ptr().addr()).expect("64 bits")
}

#[test]
fn memory_of_our_own_is_copied_read_only_memory_is_a_fault_and_a_hole_is_named() {
    let us = std::process::id();
    let heap = vec![1_u8; 3 << 20];
    let found = explain(&ask(us, addr(&heap) + 1, 3 << 19, Access::Write)).expect("ourselves");
    assert!(found.is_served() && found.is_native() && found.hole.is_none());
    let [
        Mapping {
            permissions,
            outcomes,
            ..
        },
    ] = &found.mappings[..]
    else {
        panic!("{found:?}");
    };
    assert_eq!(permissions, "rw-p");
    assert_eq!(outcomes.len(), 2);
    assert_eq!(outcomes[1].queue, "contiguous queue");
    assert_eq!(outcomes[1].way, Way::CopiedThroughMemory);

    static TEXT: &[u8] = b"read-only";
    let found = explain(&ask(us, addr(TEXT), 4, Access::Write)).expect("ourselves");
    assert!(!found.is_served() && found.hole.is_none());
    assert!(
        explain(&ask(us, addr(TEXT), 4, Access::Read))
            .expect("ourselves")
            .is_served()
    );

    let found = explain(&ask(us, 0, 4, Access::Write)).expect("ourselves");
    assert_eq!(
        (found.hole, found.is_served(), found.mappings.len()),
        (Some(0), false, 0)
    );
    assert!(!found.is_native());
}

#[test]
fn a_process_that_is_not_there_is_an_error_of_its_own() {
    assert!(matches!(
        explain(&ask(u32::MAX, 0, 4, Access::Write)),
        Err(ExplainError::NoProcess(u32::MAX))
    ));
    assert!(matches!(
        explain(&ask(0, 0, 4, Access::Write)),
        Err(ExplainError::NoProcess(0))
    ));
}
