//! An explanation as a page for people: a block for each mapping, then what becomes of the whole.

use super::explain::{Explanation, Mapping, Outcome, Way};
use super::page::Page;

/// The page, with a line feed at the end of each line. `doing` says what the device would do with the memory.
#[must_use]
pub fn explanation(explanation: &Explanation, doing: &str) -> String {
    let Explanation {
        pid,
        client_addr,
        length,
        mappings,
        hole,
    } = explanation;
    let mut page = Page::default();
    line(
        &mut page,
        &format!("process {pid}: {length} bytes from {client_addr:#x}, which a device {doing}"),
    );
    for each in mappings {
        page.gap();
        mapping(&mut page, each);
    }
    if let Some(hole) = hole {
        page.gap();
        line(&mut page, &format!("nothing is mapped from {hole:#x} on: EFAULT"));
    } else if mappings.len() > 1 {
        page.gap();
        line(
            &mut page,
            &format!("the range lies in {} mappings", mappings.len()),
        );
        let native = match explanation.is_native() {
            true => "ok",
            false => "EFAULT",
        };
        line(&mut page, &format!("  native USERPTR: {native}"));
        let served = match explanation.is_served() {
            true => "copied, mapping by mapping",
            false => "EFAULT, for what one of them cannot give",
        };
        line(&mut page, &format!("  here: {served}"));
    }
    page.into_text()
}

fn line(page: &mut Page, text: &str) {
    let words = text.trim_start();
    page.line(text.len() - words.len(), 6, words);
}

fn mapping(page: &mut Page, mapping: &Mapping) {
    let Mapping {
        start,
        end,
        from,
        to,
        permissions,
        name,
        kind,
        what,
        native,
        outcomes,
    } = mapping;
    line(page, &format!("{start:x}-{end:x} {permissions} {name}"));
    if (from, to) != (start, end) {
        let within = format!("  of it: {} bytes, from byte {} on", to - from, from - start);
        line(page, &within);
    }
    line(page, &format!("  {kind}: {what}"));
    let result = if native.ok { "ok" } else { "EFAULT" };
    line(
        page,
        &format!("  native USERPTR: {}", because(result, native.why.as_deref())),
    );
    for (queues, outcome) in grouped(outcomes) {
        let text = because(words(outcome.way), outcome.why.as_deref());
        line(page, &format!("  {}: {text}", queues.join(", ")));
    }
}

fn because(what: &str, why: Option<&str>) -> String {
    match why {
        Some(why) => format!("{what} ({why})"),
        None => what.to_owned(),
    }
}

fn words(way: Way) -> &'static str {
    match way {
        Way::Imported => "imported, zero copy",
        Way::CopiedThroughMemory => "copied through the client's memory",
        Way::CopiedThroughObject => "copied through the object",
        Way::Fault => "EFAULT",
    }
}

/// Kinds of queue with the same outcome in one line.
fn grouped(outcomes: &[Outcome]) -> Vec<(Vec<&str>, Outcome)> {
    let mut groups: Vec<(Vec<&str>, Outcome)> = Vec::new();
    for outcome in outcomes {
        let same = groups
            .iter_mut()
            .find(|(queues, first)| first.way == outcome.way && is_same_reason(queues[0], first, outcome));
        match same {
            Some((queues, first)) => {
                first.why = first.why.as_ref().map(|why| why.replace(queues[0], SUCH));
                queues.push(&outcome.queue);
            }
            None => groups.push((vec![&outcome.queue], outcome.clone())),
        }
    }
    match &mut groups[..] {
        [(queues, _)] if queues.len() > 1 => *queues = vec!["any queue"],
        _ => {}
    }
    groups
}

/// For the kind of queue in a reason that several have.
const SUCH: &str = "such a queue";

/// Does `outcome` have the reason of `first`, whose queue is `queue`, with its own queue in it?
fn is_same_reason(queue: &str, first: &Outcome, outcome: &Outcome) -> bool {
    let of_any = |why: &Option<String>, queue: &str| why.as_ref().map(|why| why.replace(queue, SUCH));
    of_any(&first.why, queue) == of_any(&outcome.why, &outcome.queue)
}

#[cfg(test)]
mod tests {
    use super::super::explain::{Explanation, Mapping, Outcome, Way};
    use super::super::native::Native;
    use super::explanation;

    fn outcome(queue: &str, way: Way, why: Option<&str>) -> Outcome {
        Outcome {
            queue: queue.to_owned(),
            way,
            why: why.map(str::to_owned),
        }
    }

    fn dma_buf() -> Mapping {
        Mapping {
            start: 0x7f00_0000_0000,
            end: 0x7f00_0009_6000,
            from: 0x7f00_0000_0000,
            to: 0x7f00_0009_6000,
            permissions: "rw-s".to_owned(),
            name: "/dmabuf:\u{1b}[31m".to_owned(),
            kind: "dma-buf".to_owned(),
            what: "dma-buf 17 (system)".to_owned(),
            native: Native {
                ok: false,
                why: Some("no page of a VM_PFNMAP mapping can be pinned".to_owned()),
            },
            outcomes: vec![
                outcome("vmalloc queue", Way::Imported, None),
                outcome("contiguous queue", Way::CopiedThroughObject, Some("forbidden")),
                outcome("unknown queue", Way::Imported, None),
            ],
        }
    }

    #[test]
    fn one_mapping_is_a_block_and_queues_with_one_outcome_share_a_line() {
        let page = explanation(
            &Explanation {
                pid: 812,
                client_addr: 0x7f00_0000_0000,
                length: 614_400,
                mappings: vec![dma_buf()],
                hole: None,
            },
            "fills",
        );
        let expected = "\
process 812: 614400 bytes from 0x7f0000000000, which a device fills

7f0000000000-7f0000096000 rw-s /dmabuf:\\u{1b}[31m
  dma-buf: dma-buf 17 (system)
  native USERPTR: EFAULT (no page of a VM_PFNMAP mapping can be pinned)
  vmalloc queue, unknown queue: imported, zero copy
  contiguous queue: copied through the object (forbidden)
";
        assert_eq!(page, expected);
    }

    #[test]
    fn reasons_that_differ_in_the_queue_alone_are_one() {
        let mut memfd = dma_buf();
        let copied = |queue: &str| {
            let why = format!("memfd is not imported into {queue}");
            outcome(queue, Way::CopiedThroughMemory, Some(&why))
        };
        memfd.outcomes = ["vmalloc queue", "scattered queue", "unknown queue"]
            .map(copied)
            .into();
        let mut asked = Explanation {
            pid: 812,
            client_addr: 0x7f00_0000_0000,
            length: 614_400,
            mappings: vec![memfd],
            hole: None,
        };
        let page = explanation(&asked, "fills");
        let expected =
            "any queue: copied through the client's memory (memfd is not imported into such a queue)\n";
        assert!(page.contains(expected), "{page}");
        // One queue alone is named.
        asked.mappings[0].outcomes.truncate(1);
        let page = explanation(&asked, "fills");
        assert!(page.contains("vmalloc queue: copied"), "{page}");
        assert!(page.contains("into vmalloc queue)"), "{page}");
    }

    #[test]
    fn two_mappings_and_a_hole_are_told_at_the_end() {
        let plain = Mapping {
            start: 0x7f00_0009_6000,
            end: 0x7f00_0019_6000,
            from: 0x7f00_0009_7000,
            to: 0x7f00_0009_8000,
            permissions: "rw-p".to_owned(),
            name: String::new(),
            kind: "memory".to_owned(),
            what: "anonymous memory".to_owned(),
            native: Native { ok: true, why: None },
            outcomes: vec![
                outcome(
                    "vmalloc queue",
                    Way::CopiedThroughMemory,
                    Some("plain memory is copied"),
                ),
                outcome(
                    "unknown queue",
                    Way::CopiedThroughMemory,
                    Some("plain memory is copied"),
                ),
            ],
        };
        let mut both = Explanation {
            pid: 812,
            client_addr: 0x7f00_0000_0000,
            length: 618_496,
            mappings: vec![dma_buf(), plain],
            hole: None,
        };
        let page = explanation(&both, "reads");
        let end = "
7f0000096000-7f0000196000 rw-p
  of it: 4096 bytes, from byte 4096 on
  memory: anonymous memory
  native USERPTR: ok
  any queue: copied through the client's memory (plain memory is copied)

the range lies in 2 mappings
  native USERPTR: EFAULT
  here: copied, mapping by mapping
";
        assert!(page.ends_with(end), "{page}");
        both.hole = Some(0x7f00_0009_8000);
        let page = explanation(&both, "reads");
        assert!(
            page.ends_with("\n\nnothing is mapped from 0x7f0000098000 on: EFAULT\n"),
            "{page}"
        );
    }
}
