//! What v4l2-compliance prints, as data.

use std::fmt;

use anyhow::ensure;

/// What it says of one test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Passed.
    Ok,
    /// The driver has none of it, and says so properly.
    NotSupported,
    /// Failed, and at which lines of v4l2-compliance's source.
    Fail(Vec<String>),
    /// It could not be tested, in its words.
    CannotTest(String),
    /// The test was not made.
    Absent,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => write!(f, "OK"),
            Self::NotSupported => write!(f, "not supported"),
            Self::Fail(lines) => write!(f, "FAIL {}", lines.join(", ")),
            Self::CannotTest(why) => write!(f, "\"{why}\""),
            Self::Absent => write!(f, "absent"),
        }
    }
}

/// All tests in the order of the output, each as "SECTION: TEST". `path` is the node's, and does not appear in them.
///
/// # Errors
/// Output that does not end with the total.
pub fn parse(output: &str, path: &str) -> anyhow::Result<Vec<(String, Verdict)>> {
    let (mut group, mut section, mut fails) = (String::new(), "", Vec::new());
    let mut verdicts: Vec<(String, Verdict)> = Vec::new();
    for line in output.lines() {
        if let Some(header) = line
            .strip_suffix(':')
            .filter(|line| !line.starts_with(char::is_whitespace))
        {
            // "Test input 0:" stands above "Streaming ioctls:" for each input.
            if header.starts_with("Test ") {
                (group, section) = (format!("{header}, "), "");
            } else {
                section = header;
            }
            continue;
        }
        // Before it on the same line there may be progress ("Video Capture: Frame #000").
        let text = line.rsplit('\t').next().unwrap_or_default();
        if let Some(fail) = text.strip_prefix("fail: ") {
            // "v4l2-test-controls.cpp(324): expected 8 private controls, got 7"
            fails.push(fail.split(": ").next().unwrap_or(fail).to_owned());
        } else if let Some((test, verdict)) =
            text.strip_prefix("test ").and_then(|text| text.rsplit_once(": "))
        {
            let test = format!("{group}{section}: {test}").replace(path, "NODE");
            let verdict = match verdict {
                "OK" => Verdict::Ok,
                "OK (Not Supported)" => Verdict::NotSupported,
                "FAIL" => Verdict::Fail(std::mem::take(&mut fails)),
                other => Verdict::CannotTest(other.to_owned()),
            };
            fails.clear();
            // Children that it forks print again what stood in the buffer of stdout.
            if !verdicts.iter().any(|known| known.0 == test && known.1 == verdict) {
                verdicts.push((test, verdict));
            }
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
        \tVideo Capture: Frame #000\tVideo Capture: Frame #001\t                  \ttest MMAP (no poll): OK\n\
        \tVideo Capture: Frame #000 (select)\t   \t\twarn: v4l2-test-buffers.cpp(2480): x != y\n\
        \ttest USERPTR (select): OK\n\ttest DMABUF: Cannot test, specify --expbuf-device\n\n\
        \ttest USERPTR (select): OK\n\ttest DMABUF: Cannot test, specify --expbuf-device\n\n\
        \ttest Disconnect: OK\n\n\
        Total for vivid device /dev/video0: 120, Succeeded: 96, Failed: 24, Warnings: 4\n";

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
                    "v4l2-test-controls.cpp(593)".to_owned(),
                    "v4l2-test-controls.cpp(706)".to_owned(),
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
    }

    #[test]
    fn an_output_without_its_end_is_an_error() {
        let (cut, _) = OUTPUT.split_once("Total for").expect("it is there");
        let error = parse(cut, "/dev/video0").expect_err("cut off");
        assert!(format!("{error}").contains("did not come to its end"), "{error}");
    }
}
