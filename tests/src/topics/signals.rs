//! Signals to a client that sleeps in DQBUF, and other threads' calls meanwhile.

use std::os::unix::process::ExitStatusExt;
use std::time::Instant;

use anyhow::ensure;
use nix::sys::signal::Signal;

use crate::client::{AT_ONCE, Client};
use crate::daemon;
use crate::report::{figure, same};
use crate::setup::{CONTIG, Test, VMALLOC};
use crate::video::{Node, ours};

pub const TESTS: &[(&str, Test)] = &[
    (
        "signals::a_client_asleep_in_dqbuf_dies_at_once_of_sigint_sigterm_and_sigkill",
        killed,
    ),
    (
        "signals::a_client_asleep_in_dqbuf_stops_and_continues_and_still_gets_its_frame",
        stopped,
    ),
    ("signals::a_handler_with_sa_restart_lets_dqbuf_go_on", restarting),
    (
        "signals::a_handler_without_sa_restart_ends_dqbuf_with_eintr",
        interrupting,
    ),
    (
        "signals::a_hundred_signals_neither_lose_the_frame_nor_a_handlers_run",
        showered,
    ),
    (
        "signals::a_second_dqbuf_is_ebusy_and_streamoff_wakes_the_first_with_einval",
        second_thread,
    ),
    (
        "signals::o_nonblock_set_by_another_thread_does_not_wake_a_sleeping_dqbuf",
        nonblock_meanwhile,
    ),
    (
        "signals::a_client_of_the_dma_contig_device_dies_stops_and_continues_too",
        contig,
    ),
];

/// A client asleep in DQBUF.
fn sleeper(node: Node, option: &str) -> anyhow::Result<Client> {
    daemon::shared()?;
    let path = node.to_string();
    let arguments: Vec<&str> = [option, &path]
        .into_iter()
        .filter(|word| !word.is_empty())
        .collect();
    let mut client = Client::start("dqbuf_sleeper", &arguments)?;
    let line = client.line()?;
    ensure!(line == "waiting", "dqbuf_sleeper on {node}: {line}");
    client.until_asleep_in_dqbuf()?;
    Ok(client)
}

/// What it still says, and how it ends. Two threads write: the order of lines says nothing.
fn end(mut client: Client) -> anyhow::Result<Vec<String>> {
    let status = client.end(AT_ONCE)?;
    let text = client.rest();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines.push(format!("{status}"));
    Ok(lines)
}

fn die_of(node: Node, signal: Signal) -> anyhow::Result<Vec<String>> {
    let mut client = sleeper(node, "")?;
    let begin = Instant::now();
    client.signal(signal)?;
    let status = client.end(AT_ONCE)?;
    if signal == Signal::SIGKILL {
        figure(format!(
            "{node}: SIGKILL ends a client asleep in DQBUF in {} ms",
            begin.elapsed().as_millis()
        ));
    }
    Ok(vec![format!("{signal}: ended by signal {:?}", status.signal())])
}

fn killed() -> anyhow::Result<()> {
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGKILL] {
        let lines = same(VMALLOC, |node| die_of(node, signal))?;
        ensure!(
            lines == [format!("{signal}: ended by signal Some({})", signal as i32)],
            "{lines:?}"
        );
    }
    Ok(())
}

fn stop_and_go(node: Node) -> anyhow::Result<Vec<String>> {
    let mut client = sleeper(node, "")?;
    for _ in 0..3 {
        client.signal(Signal::SIGSTOP)?;
        client.until_stopped()?;
        client.signal(Signal::SIGCONT)?;
        client.until_asleep_in_dqbuf()?;
    }
    client.say("q")?;
    end(client)
}

fn stopped() -> anyhow::Result<()> {
    let lines = same(VMALLOC, stop_and_go)?;
    ensure!(lines[0] == "DQBUF: ok, handler ran 0 times", "{lines:?}");
    Ok(())
}

fn restarting() -> anyhow::Result<()> {
    let lines = same(VMALLOC, |node| {
        let mut client = sleeper(node, "-r")?;
        client.signal(Signal::SIGUSR1)?;
        client.until_asleep_in_dqbuf()?;
        client.say("q")?;
        end(client)
    })?;
    ensure!(lines[0] == "DQBUF: ok, handler ran 1 times", "{lines:?}");
    Ok(())
}

fn interrupting() -> anyhow::Result<()> {
    let lines = same(VMALLOC, |node| {
        let client = sleeper(node, "-e")?;
        client.signal(Signal::SIGUSR1)?;
        end(client)
    })?;
    ensure!(lines[0] == "DQBUF: EINTR, handler ran 1 times", "{lines:?}");
    Ok(())
}

fn showered() -> anyhow::Result<()> {
    same(VMALLOC, |node| {
        let mut client = sleeper(node, "-r")?;
        for _ in 0..100 {
            client.signal(Signal::SIGUSR1)?;
        }
        // Signals of one number do not queue up, so how often the handler ran is not for comparing.
        client.until_asleep_in_dqbuf()?;
        client.say("q")?;
        let mut lines = end(client)?;
        ensure!(
            lines[0].starts_with("DQBUF: ok, handler ran ") && !lines[0].contains(" 0 times"),
            "{lines:?}"
        );
        Ok(lines.split_off(1))
    })?;
    Ok(())
}

fn second_thread() -> anyhow::Result<()> {
    let lines = same(VMALLOC, |node| {
        let mut client = sleeper(node, "")?;
        client.say("d")?;
        let second = client.line()?;
        ensure!(!client.has_ended()?, "the sleeping DQBUF has ended on {node}");
        client.say("o")?;
        let mut lines = end(client)?;
        lines.push(second);
        Ok(lines)
    })?;
    ensure!(
        lines[0] == "DQBUF: EINVAL, handler ran 0 times"
            && lines.last().is_some_and(|l| l == "second DQBUF: EBUSY"),
        "{lines:?}"
    );
    Ok(())
}

fn nonblock_meanwhile() -> anyhow::Result<()> {
    same(VMALLOC, |node| {
        let mut client = sleeper(node, "")?;
        client.say("n")?;
        let said = client.line()?;
        client.until_asleep_in_dqbuf()?;
        client.say("q")?;
        let mut lines = end(client)?;
        lines.push(said);
        Ok(lines)
    })?;
    Ok(())
}

/// The device has no USERPTR to compare with: what the other device gave is right.
fn contig() -> anyhow::Result<()> {
    let node = ours(CONTIG);
    for signal in [Signal::SIGINT, Signal::SIGKILL] {
        let lines = die_of(node, signal)?;
        ensure!(
            lines == [format!("{signal}: ended by signal Some({})", signal as i32)],
            "{lines:?}"
        );
    }
    let lines = stop_and_go(node)?;
    ensure!(
        lines == ["DQBUF: ok, handler ran 0 times", "QBUF: ok", "exit status: 0"],
        "{lines:?}"
    );
    Ok(())
}
