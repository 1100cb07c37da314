//! `vidcompat status --watch`: the table again and again, until somebody has seen enough.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use super::ask::{self, AskError};
use super::command::{Outcome, StatusOptions};
use super::model::Status;
use super::page::{Page, printable};
use super::{show, table};

/// From one look to the next.
const PAUSE: Duration = Duration::from_secs(1);
/// Cursor home, and what is below it gone (ECMA-48: CUP, ED).
const HOME: &str = "\x1b[H\x1b[J";

/// Looks until stdout is closed or the user interrupts; what is written is written here.
pub(super) fn watch(options: &StatusOptions) -> Outcome {
    let failed = |error: String| (printable(&error), ExitCode::FAILURE);
    let terminal = io::stdout().is_terminal();
    let mut before: Option<Status> = None;
    let mut first = true;
    loop {
        let begun = Instant::now();
        let text = match ask::status(&options.control) {
            Ok(now) => {
                let text = match options.json {
                    true => serde_json::to_string(&now).map_err(|error| failed(error.to_string()))? + "\n",
                    false => page(before.as_ref(), &now),
                };
                before = Some(now);
                text
            }
            // A typing error is not waited for, a restart is.
            Err(error @ (AskError::Denied(_) | AskError::Unknown { .. })) => {
                return Err(failed(error.to_string()));
            }
            Err(error) if first => return Err(failed(error.to_string())),
            Err(_) if options.json => String::new(),
            Err(error) => printable(&error.to_string()) + "\n",
        };
        first = false;
        let (clear, gap) = match (terminal, options.json) {
            (true, false) => (HOME, ""),
            (false, false) => ("", "\n"),
            (_, true) => ("", ""),
        };
        let mut out = io::stdout().lock();
        let written = write!(out, "{clear}{text}{gap}").and_then(|()| out.flush());
        drop(out);
        if written.is_err() {
            // Who reads us has seen enough.
            return Ok((String::new(), ExitCode::SUCCESS));
        }
        thread::sleep(PAUSE.saturating_sub(begun.elapsed()));
    }
}

fn page(before: Option<&Status>, now: &Status) -> String {
    let mut page = Page::default();
    show::head(&mut page, now);
    page.gap();
    let rows = table::rows(before.filter(|before| before.pid == now.pid), now);
    if rows.is_empty() {
        page.line(0, 4, "no queue has buffers");
    } else {
        table::draw(&mut page, &rows);
    }
    page.into_text()
}

#[cfg(test)]
mod tests {
    use super::page;
    use crate::observe::model::Status;
    use crate::observe::model::tests::sample;

    #[test]
    fn another_daemon_begins_at_nothing() {
        let before = sample();
        let now = Status {
            pid: 413,
            at_us: before.at_us + 1_000_000,
            ..before.clone()
        };
        assert!(page(Some(&before), &now).contains("29.97"));
        let same = Status { pid: 412, ..now };
        assert!(page(Some(&before), &same).contains(" 0.00 "));
        assert!(page(None, &Status::default()).contains("no queue has buffers"));
    }
}
