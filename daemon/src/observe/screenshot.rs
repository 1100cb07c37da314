//! `vidcompat screenshot`: what is to be seen on a framebuffer, as a PNG file.
//!
//! The picture comes over the control socket; the file is made by the command, with the rights of who has called it.

use std::fs::File;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};

use clap::Args;

use super::CONTROL;
use super::ask::{self, AskError};
use crate::backend::framebuffer::Picture;

/// Of `screenshot`.
#[derive(Clone, Debug, Args)]
pub struct ScreenshotOptions {
    /// Which framebuffer: our node (/dev/fb64), or what it stands for, as vidcompatd was told (/dev/fb0,
    /// kms:/dev/dri/card0). Not needed where there is only one.
    #[arg(long, value_name = "FRAMEBUFFER")]
    pub fb: Option<String>,

    /// The control socket of the vidcompatd that is asked.
    #[arg(long, value_name = "PATH", default_value = CONTROL)]
    pub control: PathBuf,

    /// The file to write, `-` for stdout. A file that is there already is replaced.
    #[arg(value_name = "FILE.png")]
    pub file: PathBuf,
}

/// Why there is no picture. Each message is one sentence for the person who asked.
#[derive(Debug, thiserror::Error)]
pub enum ScreenshotError {
    /// The daemon has none.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// People cannot read it.
    #[error("stdout is a terminal; a picture goes to a file or a pipe")]
    Terminal,
    /// It cannot be written.
    #[error("{} cannot be written ({source})", path.display())]
    File {
        /// Where to.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Asks for the picture and writes it.
///
/// # Errors
/// See [`ScreenshotError`]; nothing was written unless it is the last one.
pub fn screenshot(options: &ScreenshotOptions) -> Result<(), ScreenshotError> {
    let to_stdout = options.file == Path::new("-");
    if to_stdout && io::stdout().is_terminal() {
        return Err(ScreenshotError::Terminal);
    }
    // Before there is a file.
    let (_, picture) = ask::picture(&options.control, options.fb.as_deref())?;
    let written = match to_stdout {
        true => write_png(&picture, io::stdout().lock()),
        false => File::create(&options.file).and_then(|file| write_png(&picture, BufWriter::new(file))),
    };
    written.map_err(|source| ScreenshotError::File {
        path: options.file.clone(),
        source,
    })
}

fn write_png(picture: &Picture, mut file: impl Write) -> io::Result<()> {
    let mut encoder = png::Encoder::new(&mut file, picture.width, picture.height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(&picture.rgb)?;
    writer.finish()?;
    file.flush()
}

#[cfg(test)]
mod tests {
    use super::write_png;
    use crate::backend::framebuffer::Picture;
    use std::io::Cursor;

    #[test]
    fn a_picture_is_the_same_when_it_is_read_again() {
        let picture = Picture {
            width: 3,
            height: 2,
            rgb: (0..18).collect(),
        };
        let mut file = Vec::new();
        write_png(&picture, &mut file).expect("room in memory");
        let mut reader = png::Decoder::new(Cursor::new(file)).read_info().expect("a PNG");
        let mut rgb = vec![0; 18];
        let info = reader.next_frame(&mut rgb).expect("a picture");
        assert_eq!(
            (info.width, info.height, info.color_type),
            (3, 2, png::ColorType::Rgb)
        );
        assert_eq!(rgb, picture.rgb);
    }

    #[test]
    fn what_is_not_whole_is_no_png() {
        let mut picture = Picture {
            width: 3,
            height: 2,
            rgb: vec![0; 17],
        };
        assert!(!picture.is_whole());
        assert!(write_png(&picture, Vec::new()).is_err());
        picture.width = 0;
        assert!(write_png(&picture, Vec::new()).is_err());
    }
}
