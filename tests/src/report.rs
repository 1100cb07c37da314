//! What the suite says besides pass and fail: measured figures, and where two sides differ.

use std::fmt::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::bail;

use crate::nodes::Found;
use crate::video::{Node, ours, real};

static FIGURES: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Keeps a measured figure for the end of the run.
pub fn figure(text: impl Into<String>) {
    FIGURES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(text.into());
}

/// Prints all figures.
pub fn print_figures() {
    for figure in FIGURES.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("figure: {figure}");
    }
}

/// Plays `play` on the real node `number` and on ours; both must give the same lines.
pub fn same(
    number: u32,
    mut play: impl FnMut(Node) -> anyhow::Result<Vec<String>>,
) -> anyhow::Result<Vec<String>> {
    let native = play(real(number)).map_err(|error| error.context("on the real node"))?;
    let served = play(ours(number)).map_err(|error| error.context("on ours"))?;
    equal(&native, &served)?;
    Ok(native)
}

/// The same for a node of any kind.
pub fn same_on(
    node: &Found,
    mut play: impl FnMut(&Path) -> anyhow::Result<Vec<String>>,
) -> anyhow::Result<Vec<String>> {
    let on = |path: &Path| format!("on {} of {node}", path.display());
    let native = play(&node.real()).map_err(|error| error.context(on(&node.real())))?;
    let served = play(&node.ours()).map_err(|error| error.context(on(&node.ours())))?;
    equal(&native, &served).map_err(|error| error.context(format!("{node}")))?;
    Ok(native)
}

/// Fails with the first lines that differ.
pub fn equal(real: &[String], ours: &[String]) -> anyhow::Result<()> {
    let mut text = String::new();
    let mut differing = 0;
    for at in 0..real.len().max(ours.len()) {
        let (native, served) = (real.get(at), ours.get(at));
        if native == served {
            continue;
        }
        differing += 1;
        if differing <= 10 {
            if let Some(before) = at.checked_sub(1).and_then(|before| real.get(before)) {
                write!(text, "\n  after {before}")?;
            }
            let none = String::from("(nothing)");
            write!(
                text,
                "\n  real: {}\n  ours: {}",
                native.unwrap_or(&none),
                served.unwrap_or(&none)
            )?;
        }
    }
    if differing > 0 {
        bail!("{differing} lines differ:{text}");
    }
    Ok(())
}
