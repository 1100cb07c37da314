//! Where on the hardware a picture goes: a mode of its own size, or the middle of a larger one, as many times doubled as it
//! has room for.

/// What hardware can show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScreenMode {
    /// Pixels.
    pub width: u32,
    /// Lines.
    pub height: u32,
    /// Pictures in 1000 seconds.
    pub refresh_mhz: u32,
    /// In fbdev's terms.
    pub timing: ModeTiming,
}

/// As `struct fb_var_screeninfo` has it: pixclock (ps), margins, lengths of the pulses, `FB_SYNC_*`, `FB_VMODE_*`.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ModeTiming {
    pub pixclock: u32,
    pub left_margin: u32,
    pub right_margin: u32,
    pub upper_margin: u32,
    pub lower_margin: u32,
    pub hsync_len: u32,
    pub vsync_len: u32,
    pub sync: u32,
    pub vmode: u32,
}

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fit {
    /// Index of the mode.
    pub mode: usize,
    /// Each pixel of the picture is so many wide and high.
    pub scale: u32,
    /// Black pixels left of it.
    pub left: u32,
    /// Black lines above it.
    pub top: u32,
    /// The picture has the mode's own size.
    whole: bool,
}

impl Default for Fit {
    fn default() -> Self {
        Self {
            mode: 0,
            scale: 1,
            left: 0,
            top: 0,
            whole: true,
        }
    }
}

impl Fit {
    /// Where a picture of that size goes. A mode of the same size is the best, the one whose refresh is nearest to
    /// `refresh_mhz` where that is known; then the first of all modes, which is the screen's own; then the smallest that is
    /// large enough.
    #[must_use]
    pub fn find(modes: &[ScreenMode], width: u32, height: u32, refresh_mhz: Option<u32>) -> Option<Self> {
        let exact = modes
            .iter()
            .enumerate()
            .filter(|(_, mode)| (mode.width, mode.height) == (width, height))
            .min_by_key(|(_, mode)| refresh_mhz.map_or(0, |asked| asked.abs_diff(mode.refresh_mhz)));
        if let Some((mode, _)) = exact {
            return Some(Self {
                mode,
                ..Self::default()
            });
        }
        let holds = |mode: &ScreenMode| mode.width >= width && mode.height >= height;
        let at = if modes.first().is_some_and(holds) {
            0
        } else {
            let holding = modes.iter().enumerate().filter(|(_, mode)| holds(mode));
            let area = |mode: &ScreenMode| u64::from(mode.width) * u64::from(mode.height);
            holding.min_by_key(|(_, mode)| area(mode))?.0
        };
        let mode = modes.get(at)?;
        let scale = (mode.width.checked_div(width)?).min(mode.height.checked_div(height)?);
        Some(Self {
            mode: at,
            scale,
            left: (mode.width - width * scale) / 2,
            top: (mode.height - height * scale) / 2,
            whole: false,
        })
    }

    /// Has the picture the mode's own size?
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }
}

impl ScreenMode {
    /// Timing for a picture of that size in this mode: margins are the mode's, and the pixel clock is such that a program
    /// that counts (`fbset`) gets the mode's refresh.
    #[must_use]
    pub fn timing_for(&self, width: u32, height: u32) -> ModeTiming {
        let timing = self.timing;
        if (self.width, self.height) == (width, height) || timing.pixclock == 0 {
            return timing;
        }
        let sum = |parts: [u32; 4]| parts.into_iter().map(u128::from).sum::<u128>();
        let total = sum([width, timing.left_margin, timing.right_margin, timing.hsync_len])
            * sum([height, timing.upper_margin, timing.lower_margin, timing.vsync_len]);
        // Picoseconds in 1000 seconds.
        let clock = 1_000_000_000_000_000u128
            .checked_div(total * u128::from(self.refresh_mhz))
            .and_then(|clock| u32::try_from(clock).ok());
        ModeTiming {
            pixclock: clock.unwrap_or(timing.pixclock),
            ..timing
        }
    }
}
