//! A status as metrics: OpenMetrics text, which Prometheus and node-exporter's textfile collector read.
//!
//! Made of what `vidcompat status` tells, so that both say the same. Names of processes are not in it: the figures may be
//! read by more people than the status.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use super::latency::BOUNDS_US;
use super::model::{Counters, Latency, Status};

/// What the text is, for who asks by HTTP.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The text.
///
/// # Errors
/// There is none: it is written to a string.
pub fn text(status: Status) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Told(status)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry)?;
    Ok(text)
}

#[derive(Debug)]
struct Told(Status);

impl Collector for Told {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let status = &self.0;
        let mut info =
            encoder.encode_descriptor("vidcompat", "The daemon that runs", None, MetricType::Info)?;
        info.encode_info(&[("version", status.version.as_str())])?;
        video(status, &mut encoder)?;
        framebuffers(status, &mut encoder)?;
        survival(status, &mut encoder)
    }
}

/// What each device has captured or put out, of those that have.
fn queues(status: &Status) -> impl Iterator<Item = ([(&'static str, &str); 2], &Counters)> {
    status.devices.iter().flat_map(|device| {
        let totals = [
            ("capture", &device.totals.capture),
            ("output", &device.totals.output),
        ];
        totals
            .into_iter()
            .filter(|(_, counters)| **counters != Counters::default())
            .map(|(queue, counters)| ([("device", device.real.as_str()), ("queue", queue)], counters))
    })
}

fn video(status: &Status, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let mut frames = encoder.encode_descriptor(
        "vidcompat_frames",
        "Frames that went through a queue, by how they were served",
        None,
        MetricType::Counter,
    )?;
    for (labels, counters) in queues(status) {
        for (how, count) in counters.by.each() {
            if count != 0 {
                let [device, queue] = labels;
                counter(&mut frames, &[device, queue, ("how", how)], count)?;
            }
        }
    }
    let mut copied = encoder.encode_descriptor(
        "vidcompat_copied",
        "What was copied between devices' memory and programs'",
        Some(&Unit::Bytes),
        MetricType::Counter,
    )?;
    for (labels, counters) in queues(status) {
        counter(&mut copied, &labels, counters.copied_bytes)?;
    }
    let mut faults = encoder.encode_descriptor(
        "vidcompat_faults",
        "Memory of programs that could not be reached",
        None,
        MetricType::Counter,
    )?;
    for (labels, counters) in queues(status) {
        counter(&mut faults, &labels, counters.faults)?;
    }
    let mut waited = encoder.encode_descriptor(
        "vidcompat_dequeue_latency",
        "From when a frame and the DQBUF for it were both there to the answer",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    for (labels, counters) in queues(status) {
        histogram(&mut waited, &labels, &counters.latency)?;
    }
    let mut files = encoder.encode_descriptor(
        "vidcompat_open_files",
        "Open files of a device's node",
        None,
        MetricType::Gauge,
    )?;
    for device in &status.devices {
        gauge(&mut files, &device.real, device.files.len())?;
    }
    let mut streaming = encoder.encode_descriptor(
        "vidcompat_streaming_queues",
        "Queues of a device that stream",
        None,
        MetricType::Gauge,
    )?;
    for device in &status.devices {
        let queues = device.files.iter().flat_map(|file| &file.queues);
        gauge(
            &mut streaming,
            &device.real,
            queues.filter(|queue| queue.streaming).count(),
        )?;
    }
    Ok(())
}

fn framebuffers(status: &Status, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let mut shown = encoder.encode_descriptor(
        "vidcompat_framebuffer_shown",
        "Times that something new was shown of a framebuffer",
        None,
        MetricType::Counter,
    )?;
    for framebuffer in &status.framebuffers {
        counter(
            &mut shown,
            &[("device", framebuffer.source.as_str())],
            framebuffer.counters.frames,
        )?;
    }
    let mut files = encoder.encode_descriptor(
        "vidcompat_framebuffer_open_files",
        "Open files of a framebuffer's node",
        None,
        MetricType::Gauge,
    )?;
    for framebuffer in &status.framebuffers {
        gauge(&mut files, &framebuffer.source, framebuffer.files.len())?;
    }
    Ok(())
}

fn survival(status: &Status, encoder: &mut DescriptorEncoder) -> fmt::Result {
    let survival = &status.survival;
    for (name, help, count) in [
        (
            "vidcompat_restarts",
            "Daemons before this one that served the same nodes",
            survival.restarts,
        ),
        (
            "vidcompat_files_restored",
            "Open files that went on after a restart",
            survival.restored,
        ),
        (
            "vidcompat_files_given_up",
            "Open files that a restart has ended",
            survival.given_up,
        ),
        (
            "vidcompat_requests_resent",
            "Requests that the kernel has sent again",
            survival.resent,
        ),
    ] {
        let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
    }
    if let Some(took) = survival.took_us {
        let mut metric = encoder.encode_descriptor(
            "vidcompat_restart",
            "From the beginning of this daemon until the nodes of the one before were served again",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        metric.encode_gauge(&seconds(took))?;
    }
    Ok(())
}

fn counter(metric: &mut MetricEncoder, labels: &impl EncodeLabelSet, count: u64) -> fmt::Result {
    let mut of = metric.encode_family(labels)?;
    of.encode_counter::<NoLabelSet, u64, u64>(&count, None)
}

fn gauge(metric: &mut MetricEncoder, device: &str, number: usize) -> fmt::Result {
    let labels = [("device", device)];
    let mut of = metric.encode_family(&labels)?;
    of.encode_gauge(&i64::try_from(number).unwrap_or(i64::MAX))
}

fn histogram(metric: &mut MetricEncoder, labels: &impl EncodeLabelSet, latency: &Latency) -> fmt::Result {
    let classes = latency.classes.iter().copied().chain(std::iter::repeat(0));
    let bounds = BOUNDS_US.map(seconds).into_iter().chain([f64::INFINITY]);
    let buckets: Vec<_> = bounds.zip(classes).collect();
    let mut of = metric.encode_family(labels)?;
    of.encode_histogram::<NoLabelSet>(seconds(latency.sum_us), latency.count, &buckets, None)
}

/// Of microseconds: exact for as long as a daemon runs.
fn seconds(us: u64) -> f64 {
    let (whole, rest) = (us / 1_000_000, us % 1_000_000);
    let part = |part: u64| u32::try_from(part).map_or(f64::from(u32::MAX), f64::from);
    part(whole) + part(rest) / 1_000_000.0
}

#[cfg(test)]
mod tests {
    use super::super::model::Status;
    use super::super::model::tests::sample;
    use super::text;

    #[test]
    fn the_figures_are_those_of_the_status_and_no_process_is_named() {
        let text = text(sample()).expect("text");
        for line in [
            "vidcompat_info{version=\"0.1.0\"} 1",
            "vidcompat_frames_total{device=\"/dev/video0\",queue=\"capture\",how=\"copied\"} 14",
            "vidcompat_frames_total{device=\"/dev/video0\",queue=\"capture\",how=\"adopted\"} 30",
            "vidcompat_copied_bytes_total{device=\"/dev/video0\",queue=\"capture\"} 8601600",
            "vidcompat_faults_total{device=\"/dev/video0\",queue=\"capture\"} 1",
            "vidcompat_dequeue_latency_seconds_sum{device=\"/dev/video0\",queue=\"capture\"} 0.048",
            "vidcompat_dequeue_latency_seconds_count{device=\"/dev/video0\",queue=\"capture\"} 120",
            "vidcompat_dequeue_latency_seconds_bucket{le=\"0.0001\",device=\"/dev/video0\",queue=\"capture\"} 0",
            "vidcompat_dequeue_latency_seconds_bucket{le=\"0.0005\",device=\"/dev/video0\",queue=\"capture\"} 100",
            "vidcompat_dequeue_latency_seconds_bucket{le=\"+Inf\",device=\"/dev/video0\",queue=\"capture\"} 120",
            "vidcompat_open_files{device=\"/dev/video0\"} 2",
            "vidcompat_open_files{device=\"/dev/video1\"} 0",
            "vidcompat_streaming_queues{device=\"/dev/video0\"} 1",
            "vidcompat_framebuffer_shown_total{device=\"kms:/dev/dri/card1\"} 120",
            "vidcompat_restarts_total 2",
            "vidcompat_restart_seconds 0.012345",
            "vidcompat_files_restored_total 3",
            "vidcompat_files_given_up_total 1",
            "vidcompat_requests_resent_total 5",
            "# EOF",
        ] {
            assert!(text.lines().any(|each| each == line), "no {line} in\n{text}");
        }
        assert!(
            !text.contains("capture\u{1b}") && !text.contains("queue=\"output\""),
            "{text}"
        );
        let nothing = super::text(Status::default()).expect("text");
        assert!(!nothing.contains("vidcompat_restart_seconds"), "{nothing}");
    }
}
