//! Ranks linked by plain TCP, every one with every other: for launchers that set rank, world
//! size and master address only.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
#[cfg(feature = "nccl")]
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::channel::Channel;
use super::launch::Rendezvous;
use crate::error::TrainError;

/// How long ranks wait for each other at the start.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(300);
/// A rank that sends nothing for so long while another waits for it has hung.
const READ_TIMEOUT: Duration = Duration::from_secs(900);
/// Interval at which a connection with unread bytes is polled for its end.
#[cfg(feature = "nccl")]
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// First bytes of every connection, which tell a rank from another program.
const MAGIC: [u8; 8] = *b"diagrank";

/// The connections to all other ranks.
pub(crate) struct Mesh {
    /// By rank, then by channel; none to oneself.
    streams: Vec<[Option<TcpStream>; 2]>,
    rank: usize,
}

impl Mesh {
    /// Connects to all other ranks: rank 0 sends everyone the addresses of all, and then
    /// each connects to the ranks below it.
    pub fn connect(rendezvous: &Rendezvous) -> Result<Self, TrainError> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        let failed = |source: io::Error| TrainError::Rendezvous {
            address: format!("{}:{}", rendezvous.host, rendezvous.port),
            rank: rendezvous.rank,
            source,
        };
        let found = (rendezvous.host.as_str(), rendezvous.port).to_socket_addrs().map_err(failed)?.next();
        let first = found.ok_or_else(|| failed(ErrorKind::AddrNotAvailable.into()))?;
        let port = if rendezvous.rank == 0 { rendezvous.port } else { 0 };
        // Not open to the network where all ranks are on this machine.
        let any = if first.ip().is_loopback() { first.ip() } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        let listener = TcpListener::bind((any, port)).map_err(failed)?;
        let addresses = if rendezvous.rank == 0 {
            collect_addresses(&listener, rendezvous.n_ranks, deadline).map_err(failed)?
        } else {
            report_address(first, rendezvous, &listener, deadline).map_err(failed)?
        };
        Self::link(rendezvous.rank, &listener, &addresses, deadline).map_err(failed)
    }

    /// `addresses`: where each rank but the last listens.
    fn link(
        rank: usize,
        listener: &TcpListener,
        addresses: &[SocketAddr],
        deadline: Instant,
    ) -> io::Result<Self> {
        let mut streams: Vec<[Option<TcpStream>; 2]> = addresses.iter().map(|_| [None, None]).collect();
        for (peer, address) in addresses[..rank].iter().enumerate() {
            for (channel, slot) in streams[peer].iter_mut().enumerate() {
                let mut stream = connect_until(*address, deadline)?;
                send_header(&mut stream, &[rank as u64, channel as u64])?;
                *slot = Some(stream);
            }
        }
        for _ in 0..2 * (addresses.len() - rank - 1) {
            let (stream, [peer, channel]) = accept(listener, deadline)?;
            let slot = streams.get_mut(peer as usize).and_then(|of_rank| of_rank.get_mut(channel as usize));
            match slot {
                Some(slot) if slot.is_none() && peer as usize > rank => *slot = Some(stream),
                _ => {
                    return Err(io::Error::new(
                        ErrorKind::InvalidData,
                        format!("two ranks are number {peer}"),
                    ));
                }
            }
        }
        for stream in streams.iter().flatten().flatten() {
            stream.set_nodelay(true)?;
            stream.set_read_timeout(Some(READ_TIMEOUT))?;
            stream.set_write_timeout(Some(READ_TIMEOUT))?;
        }
        Ok(Self { streams, rank })
    }

    /// Sends bytes to a rank and receives as many as it sends at the same time.
    pub fn send_receive(
        &self,
        peer: usize,
        channel: Channel,
        sent: &[u8],
        received: &mut [u8],
    ) -> io::Result<()> {
        let stream = self.streams.get(peer).and_then(|of_rank| of_rank[channel as usize].as_ref());
        let mut stream = stream.ok_or_else(|| io::Error::from(ErrorKind::NotConnected))?;
        // One of the two reads first: else both could block on full send buffers.
        if self.rank < peer {
            stream.write_all(sent)?;
            stream.read_exact(received)
        } else {
            stream.read_exact(received)?;
            stream.write_all(sent)
        }
    }
}

/// Called when a rank is lost, with its number and the error that showed it.
#[cfg(feature = "nccl")]
pub(crate) type OnLostRank = Arc<dyn Fn(usize, io::Error) + Send + Sync>;

#[cfg(feature = "nccl")]
impl Mesh {
    /// Watches every connection on a thread that ends with the connection or the process.
    pub fn on_lost_rank(&self, act: &OnLostRank) {
        for (peer, of_rank) in self.streams.iter().enumerate() {
            let Some(stream) = &of_rank[Channel::Network as usize] else { continue };
            // Without a second handle it is not watched; the next read from the rank still fails.
            let Ok(stream) = stream.try_clone() else { continue };
            let act = Arc::clone(act);
            thread::spawn(move || act(peer, wait_for_end(&stream)));
        }
    }
}

/// Waits for the end of a connection; leaves the bytes that arrive in its buffer.
#[cfg(feature = "nccl")]
fn wait_for_end(stream: &TcpStream) -> io::Error {
    loop {
        match stream.peek(&mut [0]) {
            Ok(0) => return ErrorKind::UnexpectedEof.into(),
            Ok(_) => thread::sleep(POLL_INTERVAL),
            // A timeout is not the end.
            Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(err) => return err,
        }
    }
}

/// Rank 0: receives the address of each other rank and sends all of them to everyone.
fn collect_addresses(
    listener: &TcpListener,
    n_ranks: usize,
    deadline: Instant,
) -> io::Result<Vec<SocketAddr>> {
    let mut others: Vec<Option<(TcpStream, SocketAddr)>> = (1..n_ranks).map(|_| None).collect();
    while others.iter().any(Option::is_none) {
        let (stream, [rank, port]) = accept(listener, deadline).map_err(|err| {
            let missing = others.iter().zip(1usize..).filter(|(other, _)| other.is_none());
            let missing: Vec<String> = missing.map(|(_, rank)| rank.to_string()).collect();
            io::Error::new(err.kind(), format!("waiting for rank {}: {err}", missing.join(", ")))
        })?;
        let address = SocketAddr::new(stream.peer_addr()?.ip(), port as u16);
        match others.get_mut((rank as usize).wrapping_sub(1)) {
            Some(slot) if slot.is_none() => *slot = Some((stream, address)),
            _ => {
                return Err(io::Error::new(
                    ErrorKind::InvalidData,
                    format!("two ranks are number {rank}, or the ranks count each other differently"),
                ));
            }
        }
    }
    let mut addresses = vec![listener.local_addr()?];
    addresses.extend(others.iter().flatten().map(|(_, address)| *address));
    let list: Vec<String> = addresses[1..].iter().map(SocketAddr::to_string).collect();
    let list = list.join(" ");
    for (stream, _) in others.iter_mut().flatten() {
        stream.write_all(&(list.len() as u64).to_le_bytes())?;
        stream.write_all(list.as_bytes())?;
    }
    Ok(addresses)
}

/// The others: send rank 0 the port that they listen on and receive the addresses of all.
fn report_address(
    first: SocketAddr,
    rendezvous: &Rendezvous,
    listener: &TcpListener,
    deadline: Instant,
) -> io::Result<Vec<SocketAddr>> {
    let mut stream = connect_until(first, deadline)?;
    send_header(&mut stream, &[rendezvous.rank as u64, u64::from(listener.local_addr()?.port())])?;
    stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    let mut list = vec![0; (u64::from_le_bytes(length) as usize).min(1 << 20)];
    stream.read_exact(&mut list)?;
    let bad = || io::Error::new(ErrorKind::InvalidData, "rank 0 sent no list of ranks");
    let text = String::from_utf8(list).map_err(|_| bad())?;
    let mut addresses = vec![first];
    for address in text.split(' ') {
        addresses.push(address.parse().map_err(|_| bad())?);
    }
    if addresses.len() != rendezvous.n_ranks {
        let text = format!("rank 0 counts {} ranks, this one {}", addresses.len(), rendezvous.n_ranks);
        return Err(io::Error::new(ErrorKind::InvalidData, text));
    }
    Ok(addresses)
}

/// Connects; retries until the deadline, as the other side may not listen yet.
fn connect_until(address: SocketAddr, deadline: Instant) -> io::Result<TcpStream> {
    loop {
        match TcpStream::connect(address) {
            Ok(stream) => return Ok(stream),
            Err(err) if Instant::now() >= deadline => return Err(err),
            Err(_) => thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn send_header(stream: &mut TcpStream, numbers: &[u64; 2]) -> io::Result<()> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    stream.write_all(&bytes)
}

/// The next connection that begins with [`MAGIC`], and the two numbers after it.
fn accept(listener: &TcpListener, deadline: Instant) -> io::Result<(TcpStream, [u64; 2])> {
    listener.set_nonblocking(true)?;
    loop {
        match listener.accept() {
            Ok((mut stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(Duration::from_secs(10)))?;
                let mut bytes = [0; 24];
                // A connection with another header, or none, is not from a rank.
                if stream.read_exact(&mut bytes).is_ok() && bytes.starts_with(&MAGIC) {
                    let number = |at: usize| {
                        bytes[at..].first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes))
                    };
                    return Ok((stream, [number(8), number(16)]));
                }
            }
            Err(err) if err.kind() == ErrorKind::WouldBlock => {
                if Instant::now() >= deadline {
                    return Err(ErrorKind::TimedOut.into());
                }
                thread::sleep(Duration::from_millis(5));
            }
            Err(err) => return Err(err),
        }
    }
}

/// The meshes of ranks that are threads of this process.
#[cfg(test)]
pub(crate) fn mesh_within_process(n_ranks: usize) -> Vec<Mesh> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let rendezvous = move |rank| Rendezvous { rank, n_ranks, host: "127.0.0.1".to_owned(), port };
    let ranks: Vec<_> =
        (0..n_ranks).map(|rank| thread::spawn(move || Mesh::connect(&rendezvous(rank)).unwrap())).collect();
    ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
}
