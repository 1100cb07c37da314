//! A line for each queue that has buffers, for people who look at it again and again: how it is served, how fast frames
//! come, what is copied, how late they are.

use std::collections::BTreeMap;

use super::model::{File, How, Latency, Queue, Status, per_second};
use super::page::{Page, printable};
use super::show::{size, span};

/// Names and widths of the columns; what is not a word stands on the right.
const COLUMNS: [(&str, usize); 8] = [
    ("NODE", 13),
    ("PROCESS", 15),
    ("QUEUE", 15),
    ("BUFFERS", 20),
    ("FRAMES/S", 8),
    ("COPIED/S", 10),
    ("50 %", 6),
    ("99 %", 6),
];
/// Columns that hold words.
const WORDS: usize = 4;

/// The columns of one queue.
pub(super) type Row = [String; COLUMNS.len()];

/// A row for each queue of `now`: what it does at the moment, or, where `before` is given, what it has done since.
pub(super) fn rows(before: Option<&Status>, now: &Status) -> Vec<Row> {
    let mut rows = Vec::new();
    for device in &now.devices {
        let known = before.and_then(|before| before.devices.iter().find(|known| known.node == device.node));
        for file in &device.files {
            let known = known.and_then(|known| known.files.iter().find(|known| known.fh == file.fh));
            for queue in &file.queues {
                let known = known.and_then(|known| {
                    let same =
                        |known: &&Queue| known.buf_type == queue.buf_type && known.memory == queue.memory;
                    known.queues.iter().find(same)
                });
                let us = before.map_or(0, |before| now.at_us.saturating_sub(before.at_us));
                rows.push(row(&device.node, file, queue, known.map(|known| (known, us))));
            }
        }
    }
    rows
}

fn row(node: &str, file: &File, queue: &Queue, before: Option<(&Queue, u64)>) -> Row {
    let counters = &queue.counters;
    let since = before.filter(|(before, _)| before.counters.frames <= counters.frames);
    let (fps, copied, latency) = match since {
        Some((before, us)) => {
            let before = &before.counters;
            let new = |now: u64, then: u64| per_second(now.saturating_sub(then), us);
            (
                new(counters.frames, before.frames),
                u64::saturating_sub(counters.copied_bytes, before.copied_bytes).saturating_mul(1_000_000)
                    / us.max(1),
                counters.latency.since(&before.latency),
            )
        }
        None => {
            // As many bytes for each frame as there were so far.
            let bytes = counters.copied_bytes.checked_div(counters.frames).unwrap_or(0);
            (
                counters.fps,
                scaled(bytes, counters.fps),
                counters.latency.clone(),
            )
        }
    };
    let [half, most] = match latency {
        Latency { count: 0, .. } => [String::from("-"), String::from("-")],
        Latency { p50_us, p99_us, .. } => [span(p50_us), span(p99_us)].map(|text| text.replace(' ', "")),
    };
    let process = match (file.pid, &file.comm) {
        (Some(pid), Some(comm)) => format!("{pid} {comm}"),
        (Some(pid), None) => pid.to_string(),
        (None, _) => "gone".to_owned(),
    };
    let name = queue.buf_type.strip_prefix("video ").unwrap_or(&queue.buf_type);
    let name = name.strip_suffix(" (mplane)").unwrap_or(name);
    [
        node.to_owned(),
        process,
        format!("{name} {}", queue.memory),
        served(queue),
        format!("{fps:.2}"),
        size(copied),
        half,
        most,
    ]
}

/// `bytes` times `fps`.
fn scaled(bytes: u64, fps: f64) -> u64 {
    // In hundredths, as it is shown.
    let hundredths: u64 = format!("{:.0}", fps * 100.0).parse().unwrap_or(0);
    bytes.saturating_mul(hundredths) / 100
}

/// The buffers by how they are served: of several planes the one that costs most.
fn served(queue: &Queue) -> String {
    let mut ways: BTreeMap<u8, usize> = BTreeMap::new();
    for buffer in &queue.buffers {
        let cost = buffer.planes.iter().map(|plane| cost(plane.how)).max();
        *ways.entry(cost.unwrap_or(0)).or_default() += 1;
    }
    let names = ["unused", "lent", "imported", "adopted", "copied"];
    let ways = ways.into_iter().rev();
    let text: Vec<_> = ways
        .map(|(cost, number)| format!("{number} {}", names[usize::from(cost)]))
        .collect();
    match text.is_empty() {
        true => "-".to_owned(),
        false => text.join(", "),
    }
}

const fn cost(how: How) -> u8 {
    match how {
        How::NotQueued => 0,
        How::Lent => 1,
        How::Imported => 2,
        How::Adopted => 3,
        How::Copied => 4,
    }
}

/// The table, below its heads.
pub(super) fn draw(page: &mut Page, rows: &[Row]) {
    let heads = COLUMNS.map(|(head, _)| head.to_owned());
    for row in [&heads].into_iter().chain(rows) {
        let cells = row.iter().zip(COLUMNS).enumerate();
        let cell = |(at, (text, (_, width))): (usize, (&String, (&str, usize)))| {
            let text: String = printable(text).chars().take(width).collect();
            match at < WORDS {
                true => format!("{text:<width$}"),
                false => format!("{text:>width$}"),
            }
        };
        page.line(0, 4, &cells.map(cell).collect::<Vec<_>>().join(" "));
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::sample;
    use super::super::page::Page;
    use super::{draw, rows};

    #[test]
    fn a_queue_shows_what_it_does_now_or_what_it_has_done_since() {
        let before = sample();
        let drawn = |rows: &[super::Row]| {
            let mut page = Page::default();
            draw(&mut page, rows);
            page.into_text()
        };
        let once = rows(None, &before);
        assert_eq!(once.len(), 2);
        assert_eq!(
            once[0][2..],
            [
                "capture USERPTR",
                "1 copied, 1 adopted, 1 unused",
                "29.97",
                "599.3 KiB",
                "200us",
                "1ms"
            ]
        );
        let text = drawn(&once);
        assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");

        let mut now = before.clone();
        now.at_us += 2_000_000;
        let counters = &mut now.devices[0].files[0].queues[0].counters;
        counters.frames += 50;
        counters.copied_bytes += 4096;
        counters.latency.classes[9] += 50;
        let since = rows(Some(&before), &now);
        assert_eq!(since[0][4..], ["25.00", "2.0 KiB", "20ms", "20ms"]);
        assert_eq!(since[1][4..], ["0.00", "0 B", "-", "-"]);

        // Another queue since: what was before is none of its business.
        now.devices[0].files[0].queues[0].counters.frames = 3;
        assert_eq!(rows(Some(&before), &now)[0][4], "29.97");
        assert!(rows(None, &crate::observe::model::Status::default()).is_empty());
    }
}
