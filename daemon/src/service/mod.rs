//! Starting and ending: from the command line to served nodes, and back to nothing.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::backend::kms::KmsError;
use crate::claim::{Claim, Kind};
use crate::cli::Options;
use crate::config::{Config, FileError};
use crate::cuse::{Channel, InitError, Kernel};
use crate::devices::{
    FbNode, FbNodeError, NodeError, SideNode, SideNodeError, TakeoverError, Watcher, give_back_all,
};
use crate::memory::{Budget, Heap};
use crate::observe::control::Control;
use crate::observe::scrape::Metrics;
use crate::resolve::{OwnBuffers, Policy, Rule};
use crate::session::DeviceOptions;
use crate::survive::tell_end;
use crate::sys;
use chronicle::Chronicle;
use nodes::Nodes;
use observed::Observed;
use restore::{Survival, leave_kept};
use resuming::Patience;
use served::{Making, Served};
use shim_socket::ShimSocket;
use watchdog::Watchdog;

mod check;
mod chronicle;
mod framebuffers;
mod nodes;
mod observed;
mod passing;
mod patience;
mod plan;
mod restore;
mod resuming;
mod served;
mod shim_socket;
mod watchdog;
mod whereabouts;

pub use check::check;

const CUSE: &str = "/dev/cuse";
/// How long we try to answer those who wait, before their calls are aborted.
const GRACE: Duration = Duration::from_secs(1);
/// How long calls that are under way may take to end then, and drivers to answer at the beginning.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long the kernel may take to take a node away whose channel is closed.
const PARTING: Duration = Duration::from_millis(300);
/// How often it is looked what devices there are where nobody tells us.
const UNHEARD: Duration = Duration::from_secs(2);

/// Why vidcompatd does not run. Each message is one sentence for the operator.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// No CUSE.
    #[error("{CUSE} cannot be opened ({0}); load the module (`modprobe cuse`) and run vidcompatd as root")]
    Cuse(#[source] io::Error),
    /// A device that cannot be served.
    #[error(transparent)]
    Device(#[from] SideNodeError),
    /// A framebuffer that cannot be served.
    #[error(transparent)]
    Framebuffer(#[from] FbNodeError),
    /// A card that a framebuffer was to be shown on.
    #[error(transparent)]
    Kms(#[from] KmsError),
    /// A framebuffer that there is no memory for, or that does not answer.
    #[error("{0} cannot be served as a framebuffer ({1})")]
    Screen(String, #[source] io::Error),
    /// Its driver does not answer.
    #[error(
        "{0} hangs in its driver when it is opened; it is served as soon as that answers, and the other devices go on; to \
         have it sooner, load its driver's module again"
    )]
    Hangs(String),
    /// Our own node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The handshake.
    #[error(transparent)]
    Init(#[from] InitError),
    /// A thread, a runtime, a signal handler.
    #[error("the system refuses what every program needs: {0}")]
    System(#[source] io::Error),
    /// The name of a real node.
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
    /// What the operator has written down.
    #[error(transparent)]
    Config(#[from] FileError),
}

/// Serves until SIGTERM or SIGINT. Where `options` names a configuration, devices come and go meanwhile; those of the command
/// line must be there at the beginning.
///
/// # Errors
/// See [`ServiceError`]; nodes made so far are gone when this returns.
pub fn run(options: &Options) -> Result<(), ServiceError> {
    raise_file_limit();
    sys::share_arenas();
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ServiceError::System)?;
    runtime.block_on(serve(options))
}

/// Gives real nodes the names back that a daemon which is no more had taken: `--give-back`, which the unit runs when the daemon
/// has ended (`ExecStopPost=`). Where that was killed and its nodes are kept for the next one, which comes at once, they stay.
pub fn give_back() -> ExitCode {
    tell_end();
    // systemd.exec(5). A daemon that ends by itself, or that is stopped, may have no successor.
    let result = std::env::var("SERVICE_RESULT").unwrap_or_default();
    let was_killed = matches!(&*result, "signal" | "core-dump" | "watchdog");
    match give_back_all(&[], was_killed) {
        Ok(_) => ExitCode::SUCCESS,
        // It was told.
        Err(_) => ExitCode::FAILURE,
    }
}

async fn serve(options: &Options) -> Result<(), ServiceError> {
    // Before the first node: from here on a signal ends us in order.
    let mut signals = Signals::new().map_err(ServiceError::System)?;
    let config = Config::of(options)?;
    let survival = Survival::of_starter();
    // What is wrong is said before anything was changed.
    // What could not be undone was told.
    drop(give_back_all(&survival.nodes(), false));
    // A device that has gone since the daemon before us began is none of the other devices' clients' business.
    let is_heir = survival.is_heir();
    if config.strict {
        match (all_there(options, &survival), is_heir) {
            (Err(error), true) => tracing::warn!("{error}; the other devices go on"),
            (outcome, _) => outcome?,
        }
    }
    let channel = Channel::open(Path::new(CUSE)).map_err(ServiceError::Cuse)?;
    // Else the nodes end with us, and so does the socket: who asks is not to wait for a daemon that has none of its files.
    let resends = survival.store().keeps() && Kernel::of(channel)?.resends();
    let (report_end, mut ended) = mpsc::unbounded_channel();
    // Before the first program can ask for it.
    let (shims, shim_socket) = shim_socket::make(
        config.shim_socket(),
        may_anything_adopt(&config),
        survival.store(),
        resends,
        &mut survival.inheritance(),
    );
    let watchdog = Watchdog::default();
    watchdog
        .start(Duration::from_secs(options.stuck_after))
        .map_err(ServiceError::System)?;
    let chronicle = Chronicle::begin(survival.store(), resends, &mut survival.inheritance());
    let all_resumed = Arc::new(OnceLock::new());
    let making = Making {
        options: device_options(&config),
        shims,
        survival,
        report_end,
        next_id: AtomicU64::new(0),
        watchdog,
        roused: Arc::default(),
        chronicle: Arc::clone(&chronicle),
        all_resumed: Arc::clone(&all_resumed),
        patience: Patience::new(),
    };
    let shown = Arc::new(Observed::new(chronicle));
    let mut service = Service {
        options: options.clone(),
        config,
        budget: Arc::clone(&making.options.budget),
        policy: Arc::clone(&making.options.policy),
        nodes: Nodes::new(making, Arc::clone(&shown)),
        // Before the first look: what comes after it is heard of.
        watcher: Watcher::start(),
        status: String::new(),
    };
    let first = service.look();
    // By nobody else.
    let _ = all_resumed.set(());
    if let (true, Err(error)) = (service.config.strict && !is_heir, first) {
        end(service.nodes.into_served());
        return Err(error);
    }
    let _shim_server = shim_socket.and_then(ShimSocket::serve);
    let _control = service
        .config
        .control()
        .and_then(|path| control(path, Arc::clone(&shown)));
    let _metrics = options.metrics().and_then(|path| metrics(path, shown));
    service.announce();
    loop {
        service.tell_status();
        let again = service.again();
        tokio::select! {
            _ = signals.terminate.recv() => break,
            _ = signals.interrupt.recv() => break,
            _ = signals.hangup.recv() => service.reload(),
            Some(id) = ended.recv() => service.nodes.ended(id),
            () = service.watcher.changed() => {}
            () = service.nodes.roused() => {}
            () = sleep(again) => {}
        }
        // Whatever it was: all of it is looked at, and what is as it should be is left alone.
        drop(service.look());
    }
    notify(&[NotifyState::Stopping]);
    let store = Arc::clone(service.nodes.store());
    end(leave_kept(service.nodes.into_served(), &store));
    Ok(())
}

/// Is everything there that the command line names?
fn all_there(options: &Options, survival: &Survival) -> Result<(), ServiceError> {
    let is_ours = |node: &str| survival.has_channel(node);
    drop(SideNode::of_all(&options.devices, &is_ours)?);
    drop(FbNode::of_all(&options.framebuffers, &is_ours)?);
    Ok(())
}

/// What tells us to do something.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

struct Service {
    options: Options,
    config: Config,
    budget: Arc<Budget>,
    policy: Arc<Policy>,
    nodes: Nodes,
    watcher: Watcher,
    /// What systemd was told last.
    status: String,
}

impl Service {
    /// Makes and ends nodes as the configuration wants it of what is there now.
    fn look(&mut self) -> Result<(), ServiceError> {
        let outcome = self.nodes.compare(&self.config);
        let watched = self.nodes.watched();
        self.watcher.watch(watched.iter().map(PathBuf::as_path));
        outcome
    }

    /// When to look again although nothing was heard.
    fn again(&self) -> Duration {
        match self.watcher.hears() {
            true => self.nodes.pace(),
            false => self.nodes.pace().min(UNHEARD),
        }
    }

    /// Reads the configuration again. One that is wrong is told, and the old one stays.
    fn reload(&mut self) {
        // With the time, as Type=notify-reload wants it.
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(_) => notify(&[NotifyState::Reloading]),
        }
        match Config::of(&self.options) {
            Ok(config) => {
                for (what, before, after) in [
                    ("control socket", &self.config.control, &config.control),
                    ("shim's socket", &self.config.shim_socket, &config.shim_socket),
                ] {
                    if before.value != after.value {
                        tracing::warn!("the {what} stays where it is until vidcompatd is started again");
                    }
                }
                if may_anything_adopt(&self.config) != may_anything_adopt(&config) {
                    tracing::warn!("`adopt` counts when vidcompatd is started again");
                }
                self.budget
                    .change(config.memory_total.value, config.memory_per_client.value);
                self.policy.change(rules(&config));
                self.nodes.forgive();
                self.config = config;
                tracing::info!("the configuration was read again");
            }
            Err(error) => tracing::error!("{error}; the configuration stays as it was"),
        }
        notify(&[NotifyState::Ready]);
    }

    fn announce(&mut self) {
        // For scripts, also where the log goes elsewhere or is filtered.
        if let Err(error) = writeln!(io::stderr(), "ready") {
            tracing::debug!(%error, "nobody reads our stderr");
        }
        self.status = self.nodes.status();
        notify(&[NotifyState::Ready, NotifyState::Status(&self.status)]);
    }

    fn tell_status(&mut self) {
        let status = self.nodes.status();
        if status != self.status {
            notify(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }
}

fn rules(config: &Config) -> Vec<Rule> {
    config.imports.iter().map(|rule| rule.value.clone()).collect()
}

/// May any device's clients have their memory exchanged?
fn may_anything_adopt(config: &Config) -> bool {
    config.adopt.value
        || config
            .devices
            .iter()
            .any(|entry| entry.value.adopt() == Some(true))
}

fn device_options(config: &Config) -> DeviceOptions {
    DeviceOptions {
        // Framebuffers need none.
        heap: if config.devices.is_empty() { None } else { heap() },
        budget: Budget::new(config.memory_total.value, config.memory_per_client.value),
        policy: Arc::new(Policy::new(rules(config))),
        own: Arc::new(OwnBuffers::default()),
        may_adopt: config.adopt.value,
    }
}

/// A client's open costs us descriptors of our own: as many as we are allowed.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

fn heap() -> Option<Arc<Heap>> {
    match Heap::system() {
        Ok(heap) => Some(Arc::new(heap)),
        Err(error) => {
            tracing::warn!(
                %error,
                "there is no /dev/dma_heap/system: the devices' own buffers serve (a kernel with \
                 CONFIG_DMABUF_HEAPS_SYSTEM, or access to the heap, would give cached memory)"
            );
            None
        }
    }
}

/// The control socket. The devices matter more: without one they are served all the same.
fn control(path: &Path, source: Arc<Observed>) -> Option<Control> {
    let claimed = Claim::new(path, Kind::Control).map_err(|error| error.to_string());
    let started = claimed.and_then(|claim| {
        Control::start(claim, source).map_err(|error| format!("{} fails ({error})", path.display()))
    });
    started
        .inspect_err(|reason| {
            tracing::warn!(
                "`vidcompat status` cannot ask this daemon: {reason}; --control gives it a socket of its own"
            );
        })
        .ok()
}

/// The metrics socket: the same.
fn metrics(path: &Path, source: Arc<Observed>) -> Option<Metrics> {
    let claimed = Claim::new(path, Kind::Metrics).map_err(|error| error.to_string());
    let started = claimed.and_then(|claim| {
        Metrics::start(claim, source).map_err(|error| format!("{} fails ({error})", path.display()))
    });
    started
        .inspect_err(|reason| {
            tracing::warn!("this daemon gives no metrics: {reason}; --metrics gives it a socket of its own");
        })
        .ok()
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "nobody to notify");
    }
}

/// Ends nodes: whoever waits is answered, the node vanishes, the real one was never touched.
fn end(mut served: Vec<Served>) {
    if served.is_empty() {
        return;
    }
    // The first thing: who opens the node from now on has the real one.
    for takeover in served.iter_mut().filter_map(|served| served.takeover.as_mut()) {
        takeover.give_back();
    }
    // On threads of their own: a driver call that hangs holds its session.
    let answered: Vec<_> = served
        .iter()
        .filter_map(|served| {
            let front = served.front.clone();
            let thread = thread::Builder::new().name("ends".to_owned());
            thread.spawn(move || front.shut_down()).ok()
        })
        .collect();
    wait_until(GRACE, || answered.iter().all(JoinHandle::is_finished));
    for Served { node, server, .. } in &served {
        // A server that has ended has no channel, and the name may be another daemon's by now.
        if !server.is_finished()
            && let Err(error) = node.abort()
        {
            tracing::debug!(node = %node.path().display(), %error, "the node is gone already");
        }
    }
    wait_until(PATIENCE, || {
        served.iter().all(|served| served.server.is_finished())
    });
    for served in &served {
        if served.server.is_finished() {
            tracing::info!(node = %served.node.path().display(), "ended");
        } else {
            tracing::warn!(
                device = served.name,
                "a driver call is still under way; the kernel ends it with the process"
            );
        }
    }
    let ended: Vec<PathBuf> = served
        .iter()
        .filter(|served| served.server.is_finished())
        .map(|served| served.node.abort_switch())
        .collect();
    let_go(served);
    // Whoever comes next may want the name and the number; the keeper lets go of the channel a moment after us.
    wait_until(PARTING, || !ended.iter().any(|switch| switch.exists()));
}

/// Closes what nodes have open, on threads of their own: that may take as long as the devices' drivers like.
fn let_go(served: Vec<Served>) {
    let closing = served.into_iter().filter_map(|served| {
        let name = served.name.clone();
        let thread = thread::Builder::new().name("closes".to_owned());
        // What could not be moved to a thread is closed already.
        Some((name, thread.spawn(move || drop(served)).ok()?))
    });
    let closing: Vec<_> = closing.collect();
    wait_until(PATIENCE, || {
        closing.iter().all(|(_, thread)| thread.is_finished())
    });
    for (device, _) in closing.iter().filter(|(_, thread)| !thread.is_finished()) {
        tracing::warn!(device, "its driver hangs when it is closed");
    }
}

fn wait_until(patience: Duration, done: impl Fn() -> bool) {
    let deadline = Instant::now() + patience;
    while !done() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(2));
    }
}
