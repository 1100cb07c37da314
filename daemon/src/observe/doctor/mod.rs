//! `vidcompat doctor`: would a legacy program work on every device here, and if not, what is to be done? One line each.
//!
//! It needs no daemon and no privilege, and says what it could not see. It changes nothing: nodes are opened without
//! waiting, and asked what they have by REQBUFS for no buffers, which a device that is in use refuses.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ask::{self, AskError};
use super::model::Status;
use super::page::printable;

mod camera;
mod cameras;
pub(super) mod daemon;
mod kernel;
pub(super) mod log;
pub(super) mod look;
mod screens;

/// How good what was found is for a legacy program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Something works less well, or could not be looked at.
    Warning,
    /// A program would not work.
    Problem,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// How good it is.
    pub level: Level,
    /// What was looked at: a word, or a device's path.
    pub about: String,
    /// What was found.
    pub what: String,
    /// What to do, where there is something to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    fn new(level: Level, about: impl Into<String>, what: impl Into<String>) -> Self {
        Self {
            level,
            about: about.into(),
            what: what.into(),
            advice: None,
        }
    }

    fn ok(about: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(Level::Ok, about, what)
    }

    fn warning(about: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(Level::Warning, about, what)
    }

    fn problem(about: impl Into<String>, what: impl Into<String>) -> Self {
        Self::new(Level::Problem, about, what)
    }

    fn advise(self, advice: impl Into<String>) -> Self {
        Self {
            advice: Some(advice.into()),
            ..self
        }
    }
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Would a legacy program work on every device?
    pub works: bool,
    /// In the order in which they were looked at.
    pub findings: Vec<Finding>,
}

impl Report {
    fn of(findings: Vec<Finding>) -> Self {
        Self {
            works: findings.iter().all(|finding| finding.level < Level::Problem),
            findings,
        }
    }

    /// A line for each finding, and one for all.
    #[must_use]
    pub fn page(&self) -> String {
        let mut text = String::new();
        let width = self
            .findings
            .iter()
            .map(|finding| finding.about.chars().count())
            .max();
        let width = width.unwrap_or(0);
        for finding in &self.findings {
            let level = match finding.level {
                Level::Ok => "ok",
                Level::Warning => "warning",
                Level::Problem => "problem",
            };
            let advice = finding.advice.as_ref().map(|advice| format!("; {advice}"));
            let line = format!(
                "{level:<8} {:<width$}  {}{}",
                finding.about,
                finding.what,
                advice.unwrap_or_default()
            );
            text += &printable(&line);
            text.push('\n');
        }
        let count = |level| {
            self.findings
                .iter()
                .filter(|finding| finding.level == level)
                .count()
        };
        let told = match (count(Level::Problem), count(Level::Warning)) {
            (0, 0) => "A legacy program works on every device.".to_owned(),
            (0, warnings) => format!(
                "A legacy program works on every device ({}).",
                many(warnings, "warning")
            ),
            (problems, warnings) => format!(
                "A legacy program would not work everywhere ({}, {}).",
                many(problems, "problem"),
                many(warnings, "warning")
            ),
        };
        text + "\n" + &told + "\n"
    }
}

/// `1 warning`, `2 warnings`
fn many(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

/// What several looks need.
struct Machine {
    /// Are we root?
    root: bool,
    /// Of the kernel.
    kernel: (u32, u32),
    /// What a daemon says.
    daemon: Result<Status, AskError>,
    /// Its process, as far as it can be found without asking.
    daemon_pid: Option<u32>,
}

/// Looks at everything. `control` is the daemon's control socket.
#[must_use]
pub fn examine(control: &Path) -> Report {
    let machine = Machine {
        root: nix::unistd::geteuid().is_root(),
        kernel: super::native::kernel(),
        daemon: ask::status(control),
        daemon_pid: daemon::process(),
    };
    let mut findings = kernel::look(&machine);
    findings.extend(daemon::look(&machine));
    let cameras = cameras::look(&machine);
    let needed = cameras.iter().any(camera::Facts::needs_us);
    findings.extend(daemon::runs(&machine, needed));
    findings.extend(cameras.iter().map(camera::Facts::finding));
    if cameras.is_empty() {
        findings.push(cameras::none());
    }
    findings.extend(screens::look(&machine));
    findings.push(log::look(&cameras));
    Report::of(findings)
}

#[cfg(test)]
mod tests {
    use super::{Finding, Report};

    #[test]
    fn a_report_is_a_line_each_and_says_at_the_end_whether_a_program_would_work() {
        let fine = vec![
            Finding::ok("kernel", "Linux 6.12"),
            Finding::warning("/dev/video0", "somebody\u{1b}[2J has it").advise("ask again"),
        ];
        let report = Report::of(fine.clone());
        assert!(report.works);
        let expected = "\
ok       kernel       Linux 6.12
warning  /dev/video0  somebody\\u{1b}[2J has it; ask again

A legacy program works on every device (1 warning).
";
        assert_eq!(report.page(), expected);
        let report = Report::of([fine, vec![Finding::problem("cuse", "none")]].concat());
        assert!(!report.works);
        assert!(report.page().ends_with("everywhere (1 problem, 1 warning).\n"));
        let json = serde_json::to_string(&report).expect("plain data");
        assert!(
            json.contains(r#"{"level":"problem","about":"cuse","what":"none"}"#),
            "{json}"
        );
    }

    #[test]
    fn this_machine_is_looked_at_whatever_it_is() {
        let report = super::examine(std::path::Path::new("/nowhere/control.sock"));
        assert!(report.findings.iter().any(|finding| finding.about == "kernel"));
        assert!(report.findings.iter().any(|finding| finding.about == "daemon"));
    }
}
