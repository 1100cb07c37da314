//! What the control socket tells of: the nodes that are served.

use std::sync::{Arc, PoisonError, RwLock};

use super::chronicle::Chronicle;
use super::served::Served;
use crate::backend::framebuffer::Picture;
use crate::frontend::fb::FbNode;
use crate::frontend::video::VideoNode;
use crate::observe::control::Source;
use crate::observe::model;
use crate::session::now_us;

/// The nodes as they are now: they come and go.
pub(super) struct Observed {
    nodes: RwLock<Arc<Nodes>>,
    chronicle: Arc<Chronicle>,
}

impl Observed {
    /// None so far.
    pub(super) fn new(chronicle: Arc<Chronicle>) -> Self {
        Self {
            nodes: RwLock::default(),
            chronicle,
        }
    }

    /// These nodes from now on.
    pub(super) fn show<'a>(&self, served: impl Iterator<Item = &'a Served> + Clone) {
        // Changed by one assignment: never half done.
        *self.nodes.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Nodes::new(served));
    }

    fn now(&self) -> Arc<Nodes> {
        Arc::clone(&self.nodes.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Source for Observed {
    fn status(&self) -> model::Status {
        model::Status {
            survival: self.chronicle.told(),
            ..self.now().status()
        }
    }

    fn picture(&self, fb: Option<&str>) -> Result<(String, Picture), String> {
        self.now().picture(fb)
    }
}

/// Every node, with what does not change of it.
#[derive(Default)]
struct Nodes {
    devices: Vec<(model::Device, Arc<VideoNode>)>,
    framebuffers: Vec<(model::Framebuffer, Arc<FbNode>)>,
}

impl Nodes {
    fn new<'a>(served: impl Iterator<Item = &'a Served> + Clone) -> Self {
        Self {
            devices: served.clone().filter_map(Served::device).collect(),
            framebuffers: served.filter_map(Served::framebuffer).collect(),
        }
    }

    fn status(&self) -> model::Status {
        let device = |(device, front): &(model::Device, Arc<VideoNode>)| model::Device {
            totals: front.totals(),
            files: front.files(),
            ..device.clone()
        };
        let framebuffer = |(named, front): &(model::Framebuffer, Arc<FbNode>)| model::Framebuffer {
            source: named.source.clone(),
            node: named.node.clone(),
            files: front.files(),
            ..front.framebuffer().status()
        };
        model::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            at_us: now_us(),
            devices: self.devices.iter().map(device).collect(),
            framebuffers: self.framebuffers.iter().map(framebuffer).collect(),
            ..model::Status::default()
        }
    }

    fn picture(&self, fb: Option<&str>) -> Result<(String, Picture), String> {
        let named: Vec<_> = self.framebuffers.iter().map(|(named, _)| named).collect();
        let chosen = chosen(&named, fb)?;
        let Some((named, front)) = self.framebuffers.get(chosen) else {
            return Err("there is no such framebuffer".to_owned());
        };
        let picture = front.framebuffer().picture();
        let picture = picture.map_err(|reason| format!("{} ({}): {reason}", named.node, named.source))?;
        if !picture.is_whole() {
            return Err(format!("{}: a part of the picture is missing", named.node));
        }
        Ok((named.node.clone(), picture))
    }
}

/// Which of `all` is called `name`: its node, or else what it stands for.
///
/// # Errors
/// What there is, for the person who asked.
fn chosen(all: &[&model::Framebuffer], name: Option<&str>) -> Result<usize, String> {
    let names = || {
        let name = |fb: &&model::Framebuffer| format!("{} (for {})", fb.node, fb.source);
        all.iter().map(name).collect::<Vec<_>>().join(", ")
    };
    let at = |is_it: &dyn Fn(&model::Framebuffer) -> bool| all.iter().position(|fb| is_it(fb));
    match (all, name) {
        ([], _) => Err("vidcompatd serves no framebuffer (its option --fb)".to_owned()),
        ([_], None) => Ok(0),
        (_, None) => Err(format!(
            "there are several framebuffers, --fb names one: {}",
            names()
        )),
        (_, Some(name)) => at(&|fb| fb.node == name)
            .or_else(|| at(&|fb| fb.source == name))
            .ok_or_else(|| format!("vidcompatd serves no framebuffer {name}; there is {}", names())),
    }
}

#[cfg(test)]
mod tests {
    use super::{Chronicle, Observed, chosen};
    use crate::observe::control::Source;
    use crate::observe::model::Framebuffer;
    use crate::survive::{Inheritance, Store};

    fn fb(node: &str, source: &str) -> Framebuffer {
        Framebuffer {
            node: node.to_owned(),
            source: source.to_owned(),
            ..Framebuffer::default()
        }
    }

    #[test]
    fn the_status_tells_what_became_of_restarts() {
        let chronicle = Chronicle::begin(&Store::none(), true, &mut Inheritance::default());
        let observed = Observed::new(chronicle.clone());
        chronicle.restored(3, vec!["its record is spoilt".to_owned()]);
        let told = observed.status().survival;
        assert_eq!((told.restored, told.given_up), (3, 1));
        assert_eq!(told.reasons, ["its record is spoilt"]);
    }

    #[test]
    fn a_framebuffer_is_called_by_its_node_or_by_what_it_stands_for() {
        // Ours is /dev/fb1 where the real /dev/fb1 is hidden: the node counts first.
        let all = [
            fb("/dev/fb64", "/dev/fb0"),
            fb("/dev/fb1", "kms:/dev/dri/card0"),
            fb("/dev/fb65", "/dev/fb1"),
        ];
        let all: Vec<_> = all.iter().collect();
        assert_eq!(chosen(&all, Some("/dev/fb0")), Ok(0));
        assert_eq!(chosen(&all, Some("/dev/fb1")), Ok(1));
        assert_eq!(chosen(&all, Some("kms:/dev/dri/card0")), Ok(1));
        assert_eq!(chosen(&all[..1], None), Ok(0));
        let several = chosen(&all, None).expect_err("three");
        assert!(
            several.contains("--fb names one: /dev/fb64 (for /dev/fb0), "),
            "{several}"
        );
        assert!(
            chosen(&all, Some("/dev/fb9"))
                .expect_err("no")
                .contains("no framebuffer /dev/fb9")
        );
        assert!(chosen(&[], Some("/dev/fb0")).expect_err("none").contains("--fb"));
    }
}
