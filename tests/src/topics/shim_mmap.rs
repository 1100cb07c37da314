//! mmap and EXPBUF in every way that a program may try, on the real node and with the shim on ours: the same errnos, the
//! same bytes, the same numbers of fds.

use std::time::Duration;

use anyhow::ensure;

use crate::daemon;
use crate::nodes::{self, Found, Kind, vivid};
use crate::report::equal;
use crate::setup::Test;
use crate::shim::Seat;

pub const TESTS: &[(&str, Test)] = &[
    ("shim_mmap::on_a_camera", || on(0, Kind::VideoCapture)),
    ("shim_mmap::on_an_output", || on(0, Kind::VideoOutput)),
    ("shim_mmap::on_a_dma_contig_camera", || on(1, Kind::VideoCapture)),
    ("shim_mmap::on_a_dma_contig_output", || on(1, Kind::VideoOutput)),
    ("shim_mmap::on_a_multi_planar_camera", || {
        on(2, Kind::VideoCapture)
    }),
    ("shim_mmap::on_a_multi_planar_output", || on(2, Kind::VideoOutput)),
    ("shim_mmap::on_vim2m", || play(&nodes::named("vim2m")?)),
];

fn on(instance: u32, kind: Kind) -> anyhow::Result<()> {
    play(&vivid(instance, kind)?)
}

fn play(node: &Found) -> anyhow::Result<()> {
    daemon::shared()?;
    // It imports what the node exports: a camera that nobody else uses.
    let importer = u32::from(node.bus_info.ends_with("vivid-000"));
    let importer = vivid(importer, Kind::VideoCapture)?.real().display().to_string();
    let lines = |seat: &Seat| -> anyhow::Result<Vec<String>> {
        let (status, said) = seat.play(&["mmap_cases", "NODE", &importer], Duration::from_secs(60))?;
        let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
        lines.push(status.to_string());
        Ok(lines)
    };
    let native = lines(&Seat::real(node))?;
    ensure!(
        native.len() > 200 && native.last().is_some_and(|last| last == "exit status: 0"),
        "on the real node: {native:?}"
    );
    equal(&native, &lines(&Seat::preloaded(node)?)?)
}
