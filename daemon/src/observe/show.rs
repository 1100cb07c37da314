//! A status as a page for people: a line for each device, open file, queue and buffer, the most telling first.

use super::model::{Buffer, Counters, Device, File, How, Latency, Plane, Queue, Status, Survival};
use super::page::Page;
use super::{show_fb, table};

/// The page, with a line feed at the end of each line.
#[must_use]
pub fn status(status: &Status) -> String {
    let mut page = Page::default();
    head(&mut page, status);
    let rows = table::rows(None, status);
    if !rows.is_empty() {
        page.gap();
        table::draw(&mut page, &rows);
    }
    for each in &status.devices {
        page.gap();
        device(&mut page, each);
    }
    for each in &status.framebuffers {
        page.gap();
        show_fb::framebuffer(&mut page, each);
    }
    page.into_text()
}

/// Whose status it is.
pub(super) fn head(page: &mut Page, status: &Status) {
    let kinds = [
        (status.devices.len(), "device"),
        (status.framebuffers.len(), "framebuffer"),
    ];
    let served: Vec<String> = kinds
        .into_iter()
        .filter(|(number, _)| *number != 0)
        .map(|(number, what)| count(number, what))
        .collect();
    page.line(
        0,
        4,
        &format!(
            "vidcompatd {}, process {}, {}",
            status.version,
            status.pid,
            served.join(", ")
        ),
    );
    if let Some(line) = survival(&status.survival) {
        page.line(0, 4, &line);
    }
}

fn device(page: &mut Page, device: &Device) {
    let name = match device.card == device.driver {
        true => device.driver.clone(),
        false => format!("{}, {}", device.driver, device.card),
    };
    let files = files(&device.files);
    page.line(
        0,
        4,
        &format!("{} for {} ({name}): {files}", device.node, device.real),
    );
    for each in &device.files {
        file(page, each);
    }
}

/// How many of them.
pub(super) fn files(files: &[File]) -> String {
    match files.len() {
        0 => "not open".to_owned(),
        number => count(number, "open file"),
    }
}

/// Whose it is.
pub(super) fn client(file: &File) -> String {
    match (file.pid, &file.comm) {
        (Some(pid), Some(comm)) => format!("process {pid} ({comm})"),
        (Some(pid), None) => format!("process {pid}"),
        (None, _) => "its process is gone".to_owned(),
    }
}

fn file(page: &mut Page, file: &File) {
    let client = client(file);
    let state = match (file.busy, file.queues.is_empty()) {
        (true, _) => ", in a call of its driver",
        (false, true) => ", no buffers",
        (false, false) => "",
    };
    page.line(2, 6, &format!("file {}: {client}{state}", file.fh));
    for each in &file.queues {
        queue(page, each);
    }
}

fn queue(page: &mut Page, queue: &Queue) {
    let mut facts = vec![queue.memory.clone(), count(queue.buffers.len(), "buffer")];
    facts.push(
        if queue.streaming {
            "streaming"
        } else {
            "not streaming"
        }
        .to_owned(),
    );
    facts.extend(queue.importer.clone());
    facts.extend(
        queue
            .provider
            .iter()
            .map(|provider| format!("copies by {provider}")),
    );
    page.line(4, 8, &format!("{}: {}", queue.buf_type, facts.join(", ")));
    for line in counters(&queue.counters) {
        page.line(6, 8, &line);
    }
    if queue.adopted != 0 {
        let adopted = count(usize::try_from(queue.adopted).unwrap_or(usize::MAX), "buffer");
        page.line(6, 8, &format!("{adopted} adopted"));
    }
    for (reason, times) in &queue.not_adopted {
        page.line(6, 8, &format!("{times} times not adopted: {reason}"));
    }
    for each in &queue.buffers {
        buffer(page, each);
    }
}

fn counters(counters: &Counters) -> Vec<String> {
    let Counters {
        frames,
        imported,
        copied,
        copied_bytes,
        through_memory,
        through_object,
        resolves,
        remembered,
        faults,
        by: _,
        fps: _,
        ref latency,
    } = *counters;
    if *counters == Counters::default() {
        return Vec::new();
    }
    let mut lines = vec![
        format!(
            "{} frames, {imported} imported, {copied} copied ({}: {through_memory} through memory, {through_object} \
             through an object)",
            frames,
            size(copied_bytes)
        ),
        format!("{resolves} times looked behind a pointer, {remembered} times remembered"),
    ];
    if let Some(line) = waited(latency) {
        lines.push(line);
    }
    if faults != 0 {
        lines.push(format!("{faults} times memory could not be reached"));
    }
    lines
}

/// How long DQBUF took.
fn waited(latency: &Latency) -> Option<String> {
    let Latency {
        count,
        stamped,
        p50_us,
        p99_us,
        most_us,
        ..
    } = *latency;
    let from = match (count, stamped) {
        (0, _) => return None,
        (count, stamped) if count == stamped => "from the device's timestamp",
        (_, 0) => "from when the device was ready",
        (_, _) => "from the device's timestamp or when it was ready",
    };
    Some(format!(
        "DQBUF answered within {} (half), {} (99 of 100), {} (all), {from}",
        span(p50_us),
        span(p99_us),
        span(Some(most_us)),
    ))
}

/// Microseconds, for people. `None`: longer than the last class.
pub(super) fn span(us: Option<u64>) -> String {
    match us {
        None => "> 1 s".to_owned(),
        Some(us) if us < 1_000 => format!("{us} us"),
        Some(us) => {
            let (unit, name) = if us < 1_000_000 {
                (1_000, "ms")
            } else {
                (1_000_000, "s")
            };
            match us % unit * 10 / unit {
                0 => format!("{} {name}", us / unit),
                tenths => format!("{}.{tenths} {name}", us / unit),
            }
        }
    }
}

/// What became of restarts, where there is something to tell.
fn survival(survival: &Survival) -> Option<String> {
    let Survival {
        kept_by,
        restarts,
        restored,
        given_up,
        reasons,
        resent,
        took_us,
    } = survival;
    if *survival == Survival::default() {
        return None;
    }
    let keeper = match kept_by {
        Some(keeper) => format!("kept by {keeper}"),
        None => "kept by nobody".to_owned(),
    };
    if (restarts, restored, given_up) == (&0, &0, &0) {
        return Some(format!("{keeper}, never restarted"));
    }
    let mut text = format!(
        "{keeper}; restarted {restarts} times, {restored} files went on, {given_up} ended, {resent} requests repeated"
    );
    if took_us.is_some() {
        text += &format!(", served again after {}", span(*took_us));
    }
    if let Some(reason) = reasons.last() {
        text += &format!(" (the last that ended: {reason})");
    }
    Some(text)
}

fn buffer(page: &mut Page, buffer: &Buffer) {
    for (number, plane) in buffer.planes.iter().enumerate() {
        let (index, state) = match (buffer.planes.len(), number) {
            (1, _) => (buffer.index.to_string(), &*buffer.state),
            (_, 0) => (format!("{}.0", buffer.index), &*buffer.state),
            _ => (format!("{}.{number}", buffer.index), ""),
        };
        page.line(6, 31, &format!("{index:<5}{state:<9} {}", way(plane)));
    }
    if buffer.planes.is_empty() {
        page.line(
            6,
            31,
            &format!("{:<5}{:<9} not queued yet", buffer.index, buffer.state),
        );
    }
}

fn way(plane: &Plane) -> String {
    let what = plane.what.as_deref().unwrap_or("?");
    match (plane.how, &plane.why) {
        (How::NotQueued, _) => "not queued yet".to_owned(),
        (How::Imported, _) => format!("imported  {what}"),
        (How::Adopted, _) => format!("adopted   {what}"),
        (How::Lent, _) => format!("lent      {what}"),
        (How::Copied, None) => format!("copied    {what}"),
        (How::Copied, Some(why)) => format!("copied    {what}: {why}"),
    }
}

fn count(number: usize, what: &str) -> String {
    match number {
        1 => format!("1 {what}"),
        number => format!("{number} {what}s"),
    }
}

/// With a binary multiple, and one digit behind the point.
pub(super) fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let Some(unit) = (1..=units.len()).rev().find(|unit| bytes >> (10 * unit) != 0) else {
        return format!("{bytes} B");
    };
    let shift = 10 * unit;
    // Not rounded up: 1023.99 KiB are not 1024.0.
    let tenths = (u128::from(bytes) * 10) >> shift;
    format!("{}.{} {}", tenths / 10, tenths % 10, units[unit - 1])
}

#[cfg(test)]
mod tests {
    use super::super::model::tests::sample;
    use super::super::page::WIDTH;
    use super::{Survival, size, status};

    #[test]
    fn a_page_shows_every_buffer_and_what_became_of_it() {
        let expected = "\
vidcompatd 0.1.0, process 412, 2 devices, 3 framebuffers
kept by systemd; restarted 2 times, 3 files went on, 1 ended, 5 requests repeated, served again
    after 12.3 ms (the last that ended: the record of a session is of another version)

NODE          PROCESS         QUEUE           BUFFERS              FRAMES/S   COPIED/S   50 %   99 %
/dev/video64  812 capture\\u{1 capture USERPTR 1 copied, 1 adopted,    29.97  599.3 KiB  200us    1ms
/dev/video64  812 capture\\u{1 output USERPTR  1 copied                 0.00        0 B      -      -

/dev/video64 for /dev/video0 (vivid): 2 open files
  file 3: process 812 (capture\\u{1b}[2J)
    video capture: USERPTR, 3 buffers, streaming, vmalloc queue, copies by dma-heap
      120 frames, 116 imported, 4 copied (2.3 MiB: 4 through memory, 0 through an object)
      8 times looked behind a pointer, 112 times remembered
      DQBUF answered within 200 us (half), 1 ms (99 of 100), 1.8 ms (all), from the device's
        timestamp
      1 times memory could not be reached
      1 buffer adopted
      3 times not adopted: it does not begin with a page
      0    queued    adopted   our own buffer (dma-buf 17)
      1    dequeued  copied    anonymous memory: plain memory is copied
      2    dequeued  not queued yet
    video output (mplane): USERPTR, 1 buffer, not streaming, copies by device's own
      0.0  queued    copied    memory of [heap]: plain memory is copied
      0.1            imported  buffer 2 of /dev/video3
  file 4: its process is gone, in a call of its driver

/dev/video65 for /dev/video1 (vivid): not open

/dev/fb64 for /dev/fb0 (bochs-drmdrmfb): 1 open file
  1280x800, 32 bits (XRGB8888), 5120 bytes a line, 3.9 MiB
  file 7: process 900 (fbi)

/dev/fb1 for kms:/dev/dri/card1 (virtio_gpu): 2 open files
  640x400 of 640x800, 16 bits (RGB565), 1280 bytes a line, 7.8 MiB shadow memory, dma-buf by udmabuf
  converted for 1280x800, hidden: another program is master of the card
  shown 120 times, 3 pans, 118 damages told
  file 1: process 900 (fbi)
  file 2: process 900 (fbi)

/dev/fb2 for memory:8x8x8: not open
";
        assert_eq!(status(&sample()), expected);
    }

    #[test]
    fn what_nobody_has_restarted_is_said_in_few_words_and_what_nobody_keeps_in_none() {
        let mut never = sample();
        never.survival = Survival {
            kept_by: Some("keeper".to_owned()),
            ..Survival::default()
        };
        let page = status(&never);
        assert_eq!(page.lines().nth(1), Some("kept by keeper, never restarted"));
        never.survival = Survival::default();
        assert_eq!(status(&never).lines().nth(1), Some(""));
    }

    #[test]
    fn a_long_reason_goes_on_below_what_it_is_about() {
        let mut long = sample();
        let plane = &mut long.devices[0].files[0].queues[0].buffers[1].planes[0];
        plane.what = Some("buffer 1 of /dev/video2".to_owned());
        plane.why = Some("videobuf2_vmalloc is not imported into contiguous queue".to_owned());
        let page = status(&long);
        let expected = "
      1    dequeued  copied    buffer 1 of /dev/video2: videobuf2_vmalloc is not imported into
                               contiguous queue
";
        assert!(page.contains(expected), "{page}");
        assert!(page.lines().all(|line| line.chars().count() <= WIDTH));
    }

    #[test]
    fn sizes_have_binary_multiples() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            ((1 << 20) - 1, "1023.9 KiB"),
            (5 << 29, "2.5 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
