//! Which session a token opens, and for whom.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use vidcompat_proto::shim::Token;

use crate::session::Session;

/// One token for each session and user who has asked on its file: whoever is passed the file asks anew.
#[derive(Debug, Default)]
pub struct Tokens(Mutex<HashMap<Token, (Weak<Session>, u32)>>);

impl Tokens {
    /// The token of `session` for `uid`. `None`: the kernel has no random numbers.
    pub fn issue(&self, session: &Arc<Session>, uid: u32) -> Option<Token> {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let weak = Arc::downgrade(session);
        let known = tokens
            .iter()
            .find(|(_, (of, user))| *user == uid && Weak::ptr_eq(of, &weak));
        if let Some((token, _)) = known {
            return Some(*token);
        }
        tokens.retain(|_, (of, _)| of.strong_count() > 0);
        let mut token = Token::default();
        let got = rustix::rand::getrandom(&mut token, rustix::rand::GetRandomFlags::empty());
        (got == Ok(token.len())).then(|| {
            tokens.insert(token, (weak, uid));
            token
        })
    }

    /// The session that `token` opens for `uid`.
    pub fn find(&self, token: &Token, uid: u32) -> Option<Arc<Session>> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (session, user) = tokens.get(token)?;
        session.upgrade().filter(|_| *user == uid)
    }
}
