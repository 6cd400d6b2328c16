//! Where the service listens: `listen`, `[[listener]]` and `--listen`, and the rules that hold for them.
//!
//! Called by `checked`. Names of users and groups become numbers here, so that the supervisor, which sets
//! a socket file's owner, asks no name service.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use nix::unistd::{Group, User};
use serde::{Deserialize, Serialize};

use super::address::Address;
use super::error::{Problems, quoted};
use super::raw::Section;
use super::values::{choice, count_u32, found, text};
use crate::wire::{ByteOrder, Kind, Kinds};

const DEFAULT_ADDRESS: &str = "127.0.0.1:8080";
const DEFAULT_BACKLOG: u32 = 4096;
const BACKLOG: RangeInclusive<u32> = 1..=65535;
/// The last number is the system calls' "leave it as it is".
const IDS: RangeInclusive<u32> = 0..=u32::MAX - 1;

/// One socket to accept from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listener {
    pub(crate) address: Address,
    /// Connections that may wait to be accepted; `net.core.somaxconn` may allow fewer.
    #[serde(default = "default_backlog")]
    pub(crate) backlog: u32,
    /// How length prefixes are read and written.
    #[serde(default)]
    pub(crate) prefix: ByteOrder,
    /// The framings it takes; at least one. Written only if they are not all: programs of before knew no such choice.
    #[serde(default, skip_serializing_if = "Kinds::are_all")]
    pub(crate) framings: Kinds,
    /// Permission bits of the socket file; `None` leaves them to the umask. Unix sockets alone.
    #[serde(default)]
    pub(crate) mode: Option<u32>,
    /// User and group the socket file is given to, each `None` to leave it. Unix sockets alone.
    #[serde(default)]
    pub(crate) owner: Option<(Option<u32>, Option<u32>)>,
    /// Users whose processes may connect; `None`: whoever the file's permissions let. Unix sockets alone.
    #[serde(default)]
    pub(crate) allow_uids: Option<Vec<u32>>,
}

impl Listener {
    /// Its first bytes may be a length prefix or something else, which a length of 16 MiB or more would be taken for.
    pub(super) fn tells_prefixes_apart(&self) -> bool {
        self.framings.contains(Kind::Length) && self.framings.only().is_none()
    }

    fn plain(address: Address) -> Self {
        Self {
            address,
            backlog: DEFAULT_BACKLOG,
            prefix: ByteOrder::Little,
            framings: Kinds::default(),
            mode: None,
            owner: None,
            allow_uids: None,
        }
    }
}

fn default_backlog() -> u32 {
    DEFAULT_BACKLOG
}

/// What is listened on when nothing is said: this machine alone can reach it.
pub(super) fn defaults() -> Vec<Listener> {
    let loopback = std::net::SocketAddr::from(([127, 0, 0, 1], 8080));
    vec![Listener::plain(Address::Tcp(loopback))]
}

/// The file's listeners, in one of the two forms.
pub(super) fn read(root: &mut Section<'_, '_>) -> Vec<Listener> {
    let list = short_form(root);
    let tables = tables(root);
    match (list, tables) {
        (Some(_), Some(_)) => {
            let advice = "`listen` and [[listener]] are both here; keep one of them, \
                          a table's `address` is what `listen` has in its list";
            root.wrong("listener", advice);
            defaults()
        }
        (Some(listeners), None) | (None, Some(listeners)) => listeners,
        (None, None) => defaults(),
    }
}

/// The addresses of `--listen`, each with a listener's defaults.
pub(super) fn from_flags(addresses: &[String], problems: &mut Problems) -> Vec<Listener> {
    let mut listeners: Vec<Listener> = Vec::new();
    for typed in addresses {
        match address(typed).and_then(|address| new_to(&listeners, address)) {
            Ok(address) => listeners.push(Listener::plain(address)),
            Err(text) => problems.wrong_flag("--listen", text),
        }
    }
    listeners
}

fn short_form(root: &mut Section<'_, '_>) -> Option<Vec<Listener>> {
    let expected = format!("a list of addresses such as [{DEFAULT_ADDRESS:?}]");
    let mut listeners: Vec<Listener> = Vec::new();
    root.each("listen", &expected, |value| {
        let address = text("an address", address)(value)?;
        listeners.push(Listener::plain(new_to(&listeners, address)?));
        Ok(())
    });
    if root.is_empty_array("listen") {
        root.wrong(
            "listen",
            format!("expected at least one address such as {DEFAULT_ADDRESS:?}, found none"),
        );
    }
    root.has("listen").then_some(listeners)
}

fn tables(root: &mut Section<'_, '_>) -> Option<Vec<Listener>> {
    let mut listeners: Vec<Listener> = Vec::new();
    root.each_table("listener", |section| {
        if let Some(listener) = table(section, &listeners) {
            listeners.push(listener);
        }
    });
    if root.is_empty_array("listener") {
        root.wrong("listener", "expected at least one table with an `address`, found none");
    }
    root.has("listener").then_some(listeners)
}

fn table(mut section: Section<'_, '_>, others: &[Listener]) -> Option<Listener> {
    let address = section.optional("address", |value| new_to(others, text("an address", address)(value)?));
    let listener = Listener {
        backlog: section.read("backlog", DEFAULT_BACKLOG, count_u32(BACKLOG)),
        prefix: section.read("prefix", ByteOrder::Little, choice(&BYTE_ORDERS)),
        framings: framings(&mut section),
        mode: section.optional("mode", mode_value),
        owner: section.optional("owner", text("an owner such as \"www-data:www-data\"", owner)),
        allow_uids: allow_uids(&mut section),
        // Stands in for an address that is missing or wrong; the listener is then not used.
        ..Listener::plain(Address::Unix("".into()))
    };
    if !section.has("address") {
        section.wrong("address", format!("expected an address such as {DEFAULT_ADDRESS:?}, found none"));
    }
    if matches!(address, Some(Address::Tcp(_))) {
        for key in ["mode", "owner", "allow_uids"] {
            if section.has(key) {
                section.wrong(key, "only a \"unix:PATH\" address has this; remove it, or change the address");
            }
        }
    }
    section.finish();
    Some(Listener { address: address?, ..listener })
}

const BYTE_ORDERS: [(&str, ByteOrder); 2] = [("little", ByteOrder::Little), ("big", ByteOrder::Big)];

const FRAMINGS: [(&str, Kind); 4] = [
    (Kind::Length.name(), Kind::Length),
    (Kind::Stream.name(), Kind::Stream),
    (Kind::Header.name(), Kind::Header),
    (Kind::Http.name(), Kind::Http),
];

fn framings(section: &mut Section<'_, '_>) -> Kinds {
    let kinds =
        section.each("framings", "a list of framings such as [\"length\", \"http\"]", choice(&FRAMINGS));
    if section.is_empty_array("framings") {
        section.wrong("framings", "expected at least one framing, found none: no connection could speak");
    }
    kinds.map_or(Kinds::default(), Kinds::of)
}

fn allow_uids(section: &mut Section<'_, '_>) -> Option<Vec<u32>> {
    let uids = section.each("allow_uids", "a list of user numbers such as [0, 1000]", count_u32(IDS));
    if section.is_empty_array("allow_uids") {
        section.wrong("allow_uids", "expected at least one user number, found none: nobody could connect");
    }
    uids
}

fn address(text: &str) -> Result<Address, String> {
    text.parse().map_err(|error: super::AddressError| error.to_string())
}

fn new_to(others: &[Listener], address: Address) -> Result<Address, String> {
    match others.iter().find(|other| overlap(&other.address, &address, v6_takes_v4())) {
        None => Ok(address),
        Some(other) if other.address == address => {
            Err(format!("expected each address once, found {} again", quoted(&address.to_string())))
        }
        Some(other) => Err(format!(
            "expected addresses that do not overlap, found {}, which is a part of {} or the same",
            quoted(&address.to_string()),
            quoted(&other.address.to_string())
        )),
    }
}

/// Whether the kernel refuses to bind one beside the other. `v6_takes_v4`: a socket at `[::]` takes IPv4 too.
fn overlap(one: &Address, other: &Address, v6_takes_v4: bool) -> bool {
    match (one, other) {
        (Address::Tcp(one), Address::Tcp(other)) => {
            // Port 0 is a new port every time.
            one.port() == other.port() && one.port() != 0 && hosts_overlap(one, other, v6_takes_v4)
        }
        (Address::Unix(one), Address::Unix(other)) => spelled_out(one) == spelled_out(other),
        (Address::Tcp(_), Address::Unix(_)) | (Address::Unix(_), Address::Tcp(_)) => false,
    }
}

fn hosts_overlap(one: &SocketAddr, other: &SocketAddr, v6_takes_v4: bool) -> bool {
    let takes_all_of = |any: IpAddr, other: IpAddr| match any {
        IpAddr::V4(any) => any.is_unspecified() && other.is_ipv4(),
        IpAddr::V6(any) => any.is_unspecified() && (v6_takes_v4 || other.is_ipv6()),
    };
    // The same link-local address is another one on each interface.
    let scope = |address: &SocketAddr| match address {
        SocketAddr::V4(_) => 0,
        SocketAddr::V6(address) => address.scope_id(),
    };
    let (first, second) = (one.ip().to_canonical(), other.ip().to_canonical());
    takes_all_of(first, second)
        || takes_all_of(second, first)
        || (first == second && scope(one) == scope(other))
}

/// As Linux has it unless the administrator chose otherwise.
fn v6_takes_v4() -> bool {
    !std::fs::read("/proc/sys/net/ipv6/bindv6only").is_ok_and(|setting| setting.starts_with(b"1"))
}

/// A socket file's path by which two spellings of it are the same, as far as its directory is there.
fn spelled_out(path: &Path) -> PathBuf {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    match (directory.canonicalize(), path.file_name()) {
        (Ok(directory), Some(name)) => directory.join(name),
        // Without the steps that lead nowhere it may still be seen.
        _ => path.components().collect(),
    }
}

fn mode_value(value: &toml::de::DeValue<'_>) -> Result<u32, String> {
    let kind = "expected permission bits such as \"0660\"";
    if let Some(number) = value.as_integer() {
        let bare = number.radix() == 10 && number.as_str().len() <= 4;
        let advice = if bare { format!(" (write \"0{number}\")") } else { " (write it as text)".to_owned() };
        return Err(format!("{kind}, found {}{advice}", found(value)));
    }
    let octal = value.as_str().filter(|text| (3..=4).contains(&text.len()));
    let octal = octal.filter(|text| text.bytes().all(|byte| (b'0'..=b'7').contains(&byte)));
    let mode = octal.and_then(|text| u32::from_str_radix(text, 8).ok()).filter(|&mode| mode <= 0o777);
    mode.ok_or_else(|| format!("{kind}, in octal digits up to \"0777\", found {}", found(value)))
}

/// "user", "user:group" or ":group", each a name or a number.
fn owner(text: &str) -> Result<(Option<u32>, Option<u32>), String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let uid = match user {
        "" if group.is_some() => None,
        name => Some(number_or(name, "user", |name| {
            User::from_name(name).map(|user| user.map(|user| user.uid.as_raw()))
        })?),
    };
    let gid = group.map(|name| {
        number_or(name, "group", |name| {
            Group::from_name(name).map(|group| group.map(|group| group.gid.as_raw()))
        })
    });
    Ok((uid, gid.transpose()?))
}

fn number_or(
    name: &str,
    kind: &str,
    look_up: impl Fn(&str) -> nix::Result<Option<u32>>,
) -> Result<u32, String> {
    let expected = format!("expected a {kind}'s name or number");
    if name.is_empty() {
        return Err(format!("{expected}, found \"\""));
    }
    if name.bytes().all(|byte| byte.is_ascii_digit()) {
        let id = name.parse().ok().filter(|id| IDS.contains(id));
        return id.ok_or_else(|| format!("{expected}, up to {}, found {}", IDS.end(), quoted(name)));
    }
    // A NUL byte would make the look-up panic.
    if name.contains('\0') {
        return Err(format!("{expected}, found {}", quoted(name)));
    }
    match look_up(name) {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(format!("{expected}, found {}, which this system does not know", quoted(name))),
        Err(errno) => Err(format!("{expected}, found {}, which can't be looked up: {errno}", quoted(name))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // `check` found them good, and `serve` could not bind.
    #[test]
    fn addresses_that_the_kernel_binds_once_overlap() {
        for (one, other, with_v4, without) in [
            ("0.0.0.0:80", "127.0.0.1:80", true, true),
            ("0.0.0.0:80", "127.0.0.1:81", false, false),
            ("0.0.0.0:0", "127.0.0.1:0", false, false),
            ("127.0.0.1:80", "127.0.0.2:80", false, false),
            ("[::]:80", "[::1]:80", true, true),
            ("[::]:80", "127.0.0.1:80", true, false),
            ("[::]:80", "0.0.0.0:80", true, false),
            ("[::1]:80", "127.0.0.1:80", false, false),
            ("[::1]:80", "0.0.0.0:80", false, false),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true, true),
            ("[::ffff:127.0.0.1]:80", "0.0.0.0:80", true, true),
            ("unix:/tmp/a", "unix:/tmp/b", false, false),
            ("unix:/tmp/a", "unix:/tmp/../tmp/./a", true, true),
            ("unix:a", "unix:./a", true, true),
            ("unix:nowhere/a", "unix:nowhere/./a", true, true),
            ("unix:/tmp/a", "127.0.0.1:80", false, false),
        ] {
            let [one, other] = [one, other].map(|text| text.parse::<Address>().expect(text));
            for (v6_takes_v4, expected) in [(true, with_v4), (false, without)] {
                assert_eq!(overlap(&one, &other, v6_takes_v4), expected, "{one} {other} {v6_takes_v4}");
                assert_eq!(overlap(&other, &one, v6_takes_v4), expected, "{other} {one} {v6_takes_v4}");
            }
        }
    }

    #[test]
    fn owners_are_names_or_numbers() {
        assert_eq!(owner("root"), Ok((Some(0), None)));
        assert_eq!(owner("1234"), Ok((Some(1234), None)));
        assert_eq!(owner("root:99"), Ok((Some(0), Some(99))));
        assert_eq!(owner(":root"), Ok((None, Some(0))));
    }

    #[test]
    fn what_is_no_owner_says_which_half_is_wrong() {
        let unknown = "expected a group's name or number, found \"no such group\", \
                       which this system does not know";
        assert_eq!(owner("root:no such group"), Err(unknown.to_owned()));
        for (text, start) in [
            ("", "expected a user's name or number, found \"\""),
            (":", "expected a group's name or number, found \"\""),
            ("root:", "expected a group's name or number, found \"\""),
            ("4294967295", "expected a user's name or number, up to 4294967294, found \"4294967295\""),
            ("a\0b", "expected a user's name or number, found \"a\\0b\""),
            ("0:1:2", "expected a group's name or number, found \"1:2\""),
        ] {
            let error = owner(text).expect_err(text);
            assert!(error.starts_with(start), "{text:?}: {error}");
        }
    }
}
