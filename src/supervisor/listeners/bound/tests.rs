use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::wire::{ByteOrder, Kinds};

/// A folder that goes with its owner.
struct SocketFolder(PathBuf);

impl SocketFolder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("tine-listeners-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("socket")
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn wanted(address: config::Address) -> config::Listener {
    config::Listener {
        address,
        backlog: 16,
        prefix: ByteOrder::Little,
        framings: Kinds::default(),
        mode: None,
        owner: None,
        allow_uids: None,
    }
}

fn bind(path: &Path) -> Result<Listeners, String> {
    Ok(Listeners::bind(&[wanted(config::Address::Unix(path.into()))])?)
}

#[test]
fn a_stale_socket_file_is_replaced() {
    let folder = SocketFolder::new();
    drop(UnixListener::bind(folder.socket()).unwrap());
    let listeners = bind(&folder.socket()).unwrap();
    assert!(UnixStream::connect(folder.socket()).is_ok());
    assert_eq!(listeners.addresses().collect::<Vec<_>>(), [format!("unix:{}", folder.socket().display())]);
}

#[test]
fn a_socket_that_somebody_serves_is_left_alone() {
    let folder = SocketFolder::new();
    let _live = UnixListener::bind(folder.socket()).unwrap();
    let error = bind(&folder.socket()).unwrap_err();
    assert!(error.contains("is in use by another program"), "{error}");
    assert!(UnixStream::connect(folder.socket()).is_ok());
}

/// To wait there for its turn would hold the supervisor up for as long as nobody accepts.
#[test]
fn a_socket_whose_backlog_is_full_is_in_use() {
    let folder = SocketFolder::new();
    let live = UnixListener::bind(folder.socket()).unwrap();
    nix::sys::socket::listen(&live, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let _waits = UnixStream::connect(folder.socket()).unwrap();
    let error = bind(&folder.socket()).unwrap_err();
    assert!(error.contains("is in use by another program"), "{error}");
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let folder = SocketFolder::new();
    fs::write(folder.socket(), "data").unwrap();
    let error = bind(&folder.socket()).unwrap_err();
    assert!(error.contains("expected a socket or nothing there, found another file"), "{error}");
    assert_eq!(fs::read_to_string(folder.socket()).unwrap(), "data");
}

#[test]
fn a_link_is_not_followed() {
    let folder = SocketFolder::new();
    let elsewhere = folder.0.join("elsewhere");
    drop(UnixListener::bind(&elsewhere).unwrap());
    std::os::unix::fs::symlink(&elsewhere, folder.socket()).unwrap();
    assert!(bind(&folder.socket()).is_err());
    assert!(elsewhere.exists());
}

#[test]
fn the_socket_file_goes_with_its_listener() {
    let folder = SocketFolder::new();
    drop(bind(&folder.socket()).unwrap());
    assert!(!folder.socket().exists());
}

#[test]
fn a_file_that_took_the_place_of_ours_is_not_removed() {
    let folder = SocketFolder::new();
    let listeners = bind(&folder.socket()).unwrap();
    fs::remove_file(folder.socket()).unwrap();
    let _theirs = UnixListener::bind(folder.socket()).unwrap();
    drop(listeners);
    assert!(UnixStream::connect(folder.socket()).is_ok());
}

#[test]
fn what_was_bound_is_released_when_a_later_address_fails() {
    let folder = SocketFolder::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let wanted = [wanted(config::Address::Unix(folder.socket())), wanted(config::Address::Tcp(address))];
    let error = Listeners::bind(&wanted).unwrap_err().why;
    assert!(error.starts_with(&format!("{address} is in use, by another program")), "{error}");
    assert!(!folder.socket().exists());
}

#[test]
fn the_next_configuration_keeps_the_sockets_of_its_addresses_and_has_the_others_bound() {
    let folder = SocketFolder::new();
    let here = folder.socket();
    let anywhere = || wanted(config::Address::Tcp("127.0.0.1:0".parse().unwrap()));
    let unix = || wanted(config::Address::Unix(here.clone()));
    let first = Listeners::bind(&[anywhere(), unix()]).unwrap();
    let second = first.followed_by(&[unix(), anywhere(), anywhere()]).unwrap();
    let (before, after): (Vec<_>, Vec<_>) = (first.addresses().collect(), second.addresses().collect());
    assert_eq!((after[0], after[1]), (before[1], before[0]));
    assert_ne!(after[2], before[0], "port 0 twice is two sockets");
    drop(first);
    assert!(UnixStream::connect(&here).is_ok(), "kept");
    let third = second.followed_by(&[anywhere()]).unwrap();
    drop(second);
    assert!(!here.exists(), "removed with the last configuration that had it");
    drop(third);
}

#[test]
fn an_address_that_cannot_be_bound_leaves_the_listeners_before_as_they_are() {
    let folder = SocketFolder::new();
    let first = bind(&folder.socket()).unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let unix = wanted(config::Address::Unix(folder.socket()));
    let next = [unix, wanted(config::Address::Tcp(taken.local_addr().unwrap()))];
    assert!(first.followed_by(&next).is_err());
    assert!(UnixStream::connect(folder.socket()).is_ok());
}

#[test]
fn a_kept_socket_gets_its_new_mode() {
    let folder = SocketFolder::new();
    let first = bind(&folder.socket()).unwrap();
    let next = config::Listener { mode: Some(0o600), ..wanted(config::Address::Unix(folder.socket())) };
    let second = first.followed_by(&[next]).unwrap();
    second.settle(&first);
    let mode = fs::metadata(folder.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn duplicates_are_the_listeners_in_their_order() {
    let folder = SocketFolder::new();
    let anywhere = config::Address::Tcp("127.0.0.1:0".parse().unwrap());
    let wanted = [wanted(config::Address::Unix(folder.socket())), wanted(anywhere)];
    let listeners = Listeners::bind(&wanted).unwrap();
    let mut duplicates = listeners.duplicates().unwrap().into_iter().map(Listener::inherited);
    assert!(matches!(duplicates.next(), Some(Ok(Listener::Unix(_)))));
    let tcp = duplicates.next().unwrap().unwrap();
    let address = tcp.local_tcp_address().unwrap().to_string();
    assert_eq!(listeners.addresses().last(), Some(&*address));
    assert!(!address.ends_with(":0"), "{address}");
}

/// Who may write to the folder had the supervisor, often root, change owner and mode of any file by a link in the socket's
/// place.
#[test]
fn what_took_the_place_of_a_socket_keeps_its_owner_and_mode() {
    let folder = SocketFolder::new();
    let first = bind(&folder.socket()).unwrap();
    let next = config::Listener { mode: Some(0o666), ..wanted(config::Address::Unix(folder.socket())) };
    let second = first.followed_by(&[next]).unwrap();
    let victim = folder.0.join("victim");
    fs::write(&victim, "root only").unwrap();
    fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(folder.socket()).unwrap();
    std::os::unix::fs::symlink(&victim, folder.socket()).unwrap();
    second.settle(&first);
    assert_eq!(fs::metadata(&victim).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_socket_has_its_mode_when_it_is_made_whatever_the_mask() {
    for mode in [0o600, 0o666] {
        let folder = SocketFolder::new();
        let wanted = config::Listener { mode: Some(mode), ..wanted(config::Address::Unix(folder.socket())) };
        let _listeners = Listeners::bind(&[wanted]).unwrap();
        assert_eq!(fs::metadata(folder.socket()).unwrap().permissions().mode() & 0o777, mode);
    }
}

#[test]
fn a_lost_listener_is_bound_anew_for_the_next_configuration() {
    let folder = SocketFolder::new();
    let wanted = [
        wanted(config::Address::Unix(folder.socket())),
        wanted(config::Address::Tcp("127.0.0.1:0".parse().unwrap())),
    ];
    let first = Listeners::bind(&wanted).unwrap();
    let addresses: Vec<_> = first.addresses().map(str::to_owned).collect();
    assert!(first.iter().all(|(_, bound)| bound.loss().is_none()));
    for (_, bound) in first.iter() {
        bound.listener.shut_down();
        assert_eq!(bound.loss(), Some(Loss::ShutDown));
    }
    let second = first.followed_by(&wanted).unwrap();
    assert_eq!(second.addresses().collect::<Vec<_>>(), addresses, "the port is the same");
    fs::remove_file(folder.socket()).unwrap();
    assert_eq!(second.iter().filter_map(|(_, bound)| bound.loss()).collect::<Vec<_>>(), [Loss::FileGone]);
    let third = second.followed_by(&wanted).unwrap();
    drop((first, second));
    assert!(UnixStream::connect(folder.socket()).is_ok());
    assert!(std::net::TcpStream::connect(&addresses[1]).is_ok());
    drop(third);
}

#[test]
fn nobody_can_connect_when_a_listener_is_given_up_although_another_process_has_it() {
    let folder = SocketFolder::new();
    let anywhere = config::Address::Tcp("127.0.0.1:0".parse().unwrap());
    let listeners =
        Listeners::bind(&[wanted(config::Address::Unix(folder.socket())), wanted(anywhere)]).unwrap();
    let address = listeners.addresses().last().unwrap().to_owned();
    let link = folder.0.join("link");
    fs::hard_link(folder.socket(), &link).unwrap();
    let _held = listeners.duplicates().unwrap();
    drop(listeners);
    assert!(UnixStream::connect(link).is_err());
    assert!(std::net::TcpStream::connect(&address).is_err());
    assert!(std::net::TcpListener::bind(&address).is_ok());
}
