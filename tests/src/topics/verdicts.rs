//! What v4l2-compliance prints to a terminal (`-C never -P`), as data.
//!
//! Not what it prints to a pipe: it forks children that print again whatever they find in the buffer of stdout, and
//! only that of a terminal is empty at the end of each line.

use std::fmt;

use anyhow::ensure;

/// What it says of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Passed.
    Ok,
    /// The driver has none of it, and says so properly.
    NotSupported,
    /// Failed, and why.
    Fail(Vec<Failure>),
    /// It could not be tested, in its words.
    CannotTest(String),
    /// The test was not made.
    Absent,
}

/// Why a test failed.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The line of v4l2-compliance's source, e.g. `v4l2-test-controls.cpp(593)`.
    pub at: String,
    /// The condition there, or a sentence with the values that were met.
    pub what: String,
}

/// The same line; the values that were met there may be others.
impl PartialEq for Failure {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Failure {}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => write!(f, "OK"),
            Self::NotSupported => write!(f, "not supported"),
            Self::Fail(failures) => {
                write!(f, "FAIL")?;
                for Failure { at, what } in failures {
                    write!(f, " [{at}: {what}]")?;
                }
                Ok(())
            }
            Self::CannotTest(why) => write!(f, "\"{why}\""),
            Self::Absent => write!(f, "absent"),
        }
    }
}

/// All tests in the order of the output, each as "SECTION: TEST". `path` is the node's, and does not appear in them.
///
/// # Errors
/// Output that does not end with the total, or has a test twice.
pub fn parse(output: &str, path: &str) -> anyhow::Result<Vec<(String, Verdict)>> {
    let (mut group, mut section, mut fails) = ("", "", Vec::new());
    let mut verdicts: Vec<(String, Verdict)> = Vec::new();
    for line in output.lines() {
        if let Some(header) = line
            .strip_suffix(':')
            .filter(|line| !line.starts_with(char::is_whitespace))
        {
            // "Test input 0:" stands above "Streaming ioctls:" for each input.
            if header.starts_with("Test ") {
                (group, section) = (header, "");
            } else {
                section = header;
            }
            continue;
        }
        let text = line.trim_start();
        if let Some(fail) = text.strip_prefix("fail: ") {
            // "v4l2-test-controls.cpp(324): expected 8 private controls, got 7"
            let (at, what) = fail.split_once(": ").unwrap_or((fail, ""));
            fails.push(Failure {
                at: at.to_owned(),
                what: what.to_owned(),
            });
        } else if let Some((test, verdict)) =
            text.strip_prefix("test ").and_then(|text| text.rsplit_once(": "))
        {
            let test = test.replace(path, "NODE");
            let test = match section {
                "Streaming ioctls" => format!("{group}, {section}: {test}"),
                _ => format!("{section}: {test}"),
            };
            let fails = std::mem::take(&mut fails);
            let verdict = match verdict {
                "OK" => Verdict::Ok,
                "OK (Not Supported)" => Verdict::NotSupported,
                "FAIL" => Verdict::Fail(fails),
                other => Verdict::CannotTest(other.to_owned()),
            };
            ensure!(
                verdicts.iter().all(|known| known.0 != test),
                "{test} is there twice"
            );
            verdicts.push((test, verdict));
        }
    }
    let tail = || output.get(output.len().saturating_sub(600)..).unwrap_or(output);
    ensure!(
        output.lines().any(|line| line.starts_with("Total for ")),
        "v4l2-compliance did not come to its end: ...{}",
        tail()
    );
    ensure!(!verdicts.is_empty(), "no tests in: {}", tail());
    Ok(verdicts)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of v4l2-compliance 1.22.1 -s3 on vivid, Linux 6.12; a part of each section.
    const OUTPUT: &str = "v4l2-compliance 1.22.1, 64 bits, 64-bit time_t\n\n\
        Compliance test for vivid device /dev/video0:\n\nDriver Info:\n\tDriver name      : vivid\n\n\
        Required ioctls:\n\ttest MC information (see 'Media Driver Info' above): OK\n\ttest VIDIOC_QUERYCAP: OK\n\n\
        Allow for multiple opens:\n\ttest second /dev/video0 open: OK\n\ttest VIDIOC_QUERYCAP: OK\n\n\
        Control ioctls (Input 0):\n\
        \t\tfail: v4l2-test-controls.cpp(593): returned control value out of range\n\
        \t\tfail: v4l2-test-controls.cpp(706): invalid control 0098f90f\n\
        \ttest VIDIOC_G/S/TRY_EXT_CTRLS: FAIL\n\ttest VIDIOC_G/S_JPEGCOMP: OK (Not Supported)\n\
        \tStandard Controls: 16 Private Controls: 52\n\n\
        Test input 0:\n\nStreaming ioctls:\n\ttest read/write: OK\n\
        \ttest MMAP (no poll): OK\n\t\twarn: v4l2-test-buffers.cpp(2480): x != y\n\
        \ttest USERPTR (select): OK\n\ttest DMABUF: Cannot test, specify --expbuf-device\n\n\
        \ttest Disconnect: OK\n\n\
        Total for vivid device /dev/video0: 120, Succeeded: 96, Failed: 24, Warnings: 4\n";

    fn failure(at: &str, what: &str) -> Failure {
        Failure {
            at: at.to_owned(),
            what: what.to_owned(),
        }
    }

    #[test]
    fn the_tests_of_an_output() {
        let verdicts = parse(OUTPUT, "/dev/video0").expect("complete");
        let expected = [
            (
                "Required ioctls: MC information (see 'Media Driver Info' above)",
                Verdict::Ok,
            ),
            ("Required ioctls: VIDIOC_QUERYCAP", Verdict::Ok),
            ("Allow for multiple opens: second NODE open", Verdict::Ok),
            ("Allow for multiple opens: VIDIOC_QUERYCAP", Verdict::Ok),
            (
                "Control ioctls (Input 0): VIDIOC_G/S/TRY_EXT_CTRLS",
                Verdict::Fail(vec![
                    failure(
                        "v4l2-test-controls.cpp(593)",
                        "returned control value out of range",
                    ),
                    failure("v4l2-test-controls.cpp(706)", "invalid control 0098f90f"),
                ]),
            ),
            (
                "Control ioctls (Input 0): VIDIOC_G/S_JPEGCOMP",
                Verdict::NotSupported,
            ),
            ("Test input 0, Streaming ioctls: read/write", Verdict::Ok),
            ("Test input 0, Streaming ioctls: MMAP (no poll)", Verdict::Ok),
            ("Test input 0, Streaming ioctls: USERPTR (select)", Verdict::Ok),
            (
                "Test input 0, Streaming ioctls: DMABUF",
                Verdict::CannotTest("Cannot test, specify --expbuf-device".to_owned()),
            ),
            ("Test input 0, Streaming ioctls: Disconnect", Verdict::Ok),
        ];
        let expected = expected.map(|(test, verdict)| (test.to_owned(), verdict));
        assert_eq!(verdicts, expected);
        // Those of an equal verdict may say something else.
        assert_eq!(format!("{:?}", verdicts[4]), format!("{:?}", expected[4]));
    }

    #[test]
    fn a_test_that_is_there_twice_is_an_error() {
        let twice = OUTPUT.replace(
            "\ttest read/write: OK\n",
            "\ttest read/write: OK\n\ttest read/write: FAIL\n",
        );
        let error = parse(&twice, "/dev/video0").expect_err("twice");
        assert!(
            format!("{error}").contains("read/write is there twice"),
            "{error}"
        );
    }

    #[test]
    fn an_output_without_its_end_is_an_error() {
        let (cut, _) = OUTPUT.split_once("Total for").expect("it is there");
        let error = parse(cut, "/dev/video0").expect_err("cut off");
        assert!(format!("{error}").contains("did not come to its end"), "{error}");
    }
}
