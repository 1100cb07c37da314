//! Starting and ending: from the command line to served nodes, and back to nothing.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::backend::kms::KmsError;
use crate::claim::{Claim, Kind};
use crate::cli::Options;
use crate::cuse::InitError;
use crate::devices::{FbNode, FbNodeError, NodeError, SideNode, SideNodeError};
use crate::memory::{Budget, Heap};
use crate::observe::control::Control;
use crate::resolve::{OwnBuffers, Policy};
use crate::session::DeviceOptions;
use crate::survive::{Inheritance, Store};
use crate::sys;
use observed::Observed;
use served::{Making, Served};
use shim_socket::ShimSocket;

mod framebuffers;
mod observed;
mod served;
mod shim_socket;

const CUSE: &str = "/dev/cuse";
/// How long we try to answer those who wait, before their calls are aborted.
const GRACE: Duration = Duration::from_secs(1);
/// How long calls that are under way may take to end then.
const PATIENCE: Duration = Duration::from_secs(3);

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
    /// Our own node.
    #[error(transparent)]
    Node(#[from] NodeError),
    /// The handshake.
    #[error(transparent)]
    Init(#[from] InitError),
    /// A thread, a runtime, a signal handler.
    #[error("the system refuses what every program needs: {0}")]
    System(#[source] io::Error),
    /// A node ended by itself.
    #[error(
        "the node for {0} has ended although nobody asked for it; vidcompatd ends, the real node is untouched"
    )]
    Ended(String),
}

/// Serves until SIGTERM or SIGINT.
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
    runtime.block_on(async {
        // Before the first node: from here on a signal ends us in order.
        let mut terminate = signal(SignalKind::terminate()).map_err(ServiceError::System)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(ServiceError::System)?;
        let (report_end, mut ended) = mpsc::unbounded_channel();
        let device_options = DeviceOptions {
            // Framebuffers need none.
            heap: if options.devices.is_empty() { None } else { heap() },
            budget: Budget::new(options.memory_total(), options.memory_per_client),
            policy: Arc::new(Policy::new(options.imports.clone())),
            own: Arc::new(OwnBuffers::default()),
            may_adopt: options.adopt,
        };
        // The real nodes first: what is wrong with one is said before anything was changed.
        let nodes = SideNode::of_all(&options.devices)?;
        let framebuffers = FbNode::of_all(&options.framebuffers)?;
        let store = Store::of_starter();
        let mut inheritance = Inheritance::take();
        // Before the first program can ask for it.
        let (shims, shim_socket) =
            shim_socket::make(options.shim_socket(), options.adopt, &store, &mut inheritance);
        let mut served = Vec::new();
        let making = Making {
            options: device_options,
            shims,
            report_end,
        };
        let outcome = match start_all(nodes, framebuffers, &making, &mut served) {
            Ok(()) => {
                let _shim_server = shim_socket.and_then(ShimSocket::serve);
                inheritance.give_up(&store);
                let _control = options.control().and_then(|path| control(path, &served));
                announce(&served);
                tokio::select! {
                    _ = terminate.recv() => Ok(()),
                    _ = interrupt.recv() => Ok(()),
                    Some(name) = ended.recv() => Err(ServiceError::Ended(name)),
                }
            }
            Err(error) => Err(error),
        };
        end_all(served);
        outcome
    })
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

fn start_all(
    nodes: Vec<SideNode>,
    framebuffers: Vec<FbNode>,
    making: &Making,
    served: &mut Vec<Served>,
) -> Result<(), ServiceError> {
    for framebuffer in framebuffers {
        served.push(making.framebuffer(framebuffer)?);
    }
    for node in nodes {
        served.push(making.video(node)?);
    }
    Ok(())
}

/// The control socket. The devices matter more: without one they are served all the same.
fn control(path: &Path, served: &[Served]) -> Option<Control> {
    let source = Arc::new(Observed::new(served));
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

fn announce(served: &[Served]) {
    for Served { name, node, .. } in served {
        tracing::info!(device = name, node = %node.path().display(), "serving");
    }
    // For scripts, also where the log goes elsewhere or is filtered.
    if let Err(error) = writeln!(io::stderr(), "ready") {
        tracing::debug!(%error, "nobody reads our stderr");
    }
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "nobody to notify");
    }
}

/// Ends every node: whoever waits is answered, the node vanishes, the real one was never touched.
fn end_all(served: Vec<Served>) {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Stopping]) {
        tracing::debug!(%error, "nobody to notify");
    }
    // On threads of their own: a driver call that hangs holds its session.
    let answered: Vec<_> = served
        .iter()
        .map(|served| {
            let front = served.front.clone();
            thread::spawn(move || front.shut_down())
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
    for Served {
        name, node, server, ..
    } in served
    {
        if server.is_finished() {
            tracing::info!(node = %node.path().display(), "ended");
        } else {
            tracing::warn!(
                device = name,
                "a driver call is still under way; the kernel ends it with the process"
            );
        }
    }
}

fn wait_until(patience: Duration, done: impl Fn() -> bool) {
    let deadline = Instant::now() + patience;
    while !done() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(2));
    }
}
