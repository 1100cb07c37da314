//! The part of a status page that tells of framebuffers.

use super::model::{FbCounters, Framebuffer};
use super::page::Page;
use super::show::{client, files, size};

/// A framebuffer and its open files.
pub(super) fn framebuffer(page: &mut Page, fb: &Framebuffer) {
    let driver = match fb.driver.is_empty() {
        true => String::new(),
        false => format!(" ({})", fb.driver),
    };
    page.line(
        0,
        4,
        &format!("{} for {}{driver}: {}", fb.node, fb.source, files(&fb.files)),
    );
    for line in [mode(fb), output(fb), counters(fb.counters)]
        .into_iter()
        .flatten()
    {
        page.line(2, 6, &line);
    }
    for file in &fb.files {
        page.line(2, 6, &format!("file {}: {}", file.fh, client(file)));
    }
}

fn mode(fb: &Framebuffer) -> Option<String> {
    let mode = fb.mode.as_ref()?;
    let mut text = format!("{}x{}", mode.width, mode.height);
    if (mode.virtual_width, mode.virtual_height) != (mode.width, mode.height) {
        text += &format!(" of {}x{}", mode.virtual_width, mode.virtual_height);
    }
    text += &format!(", {} bits", mode.depth);
    if let Some(format) = &mode.format {
        text += &format!(" ({format})");
    }
    text += &format!(", {} bytes a line, {}", mode.line_length, size(fb.memory_bytes));
    if let Some(memory) = &fb.memory {
        text += &format!(" {memory} memory");
    }
    if let Some(exporter) = &fb.dma_buf {
        text += &format!(", dma-buf by {exporter}");
    }
    Some(text)
}

fn output(fb: &Framebuffer) -> Option<String> {
    let (width, height) = fb.output?;
    let how = match fb.converted {
        true => "converted for",
        false => "as it is on",
    };
    let seen = match (fb.shown, &fb.hidden) {
        (Some(true), _) => ", shown".to_owned(),
        (_, Some(why)) => format!(", hidden: {why}"),
        (Some(false), None) => ", hidden".to_owned(),
        (None, None) => String::new(),
    };
    Some(format!("{how} {width}x{height}{seen}"))
}

fn counters(counters: FbCounters) -> Option<String> {
    let FbCounters {
        frames,
        pans,
        damages,
    } = counters;
    (counters != FbCounters::default())
        .then(|| format!("shown {frames} times, {pans} pans, {damages} damages told"))
}
