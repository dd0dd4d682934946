//! `subnet.env`: what flannel tells the CNI plugin and `mk-docker-opts.sh`, and what a later start reads as its previous
//! state.
//!
//! ```text
//! FLANNEL_NETWORK=10.1.0.0/16
//! FLANNEL_SUBNET=10.1.74.1/24
//! FLANNEL_MTU=1472
//! FLANNEL_IPMASQ=true
//! ```

use super::{OwnLease, Subnets};
use ipnet::{Ipv4Net, Ipv6Net};
use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::str::FromStr;

/// The longest file that is read, in bytes.
const LEN_MAX: u64 = 64 * 1024;

/// What a file says. A line that is missing or makes no sense is `None`, and so is one with several prefixes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubnetEnv {
    /// `FLANNEL_NETWORK`.
    pub network: Option<Ipv4Net>,
    /// `FLANNEL_SUBNET`, without host bits.
    pub subnet: Option<Ipv4Net>,
    /// `FLANNEL_IPV6_NETWORK`.
    pub network_v6: Option<Ipv6Net>,
    /// `FLANNEL_IPV6_SUBNET`, without host bits.
    pub subnet_v6: Option<Ipv6Net>,
    /// `FLANNEL_MTU`, in bytes.
    pub mtu: Option<u32>,
    /// `FLANNEL_IPMASQ`.
    pub ip_masq: Option<bool>,
}

impl SubnetEnv {
    /// What is written once the lease is had.
    pub fn new(own: &OwnLease, mtu: u32, ip_masq: bool) -> SubnetEnv {
        SubnetEnv {
            network: own.network,
            subnet: own.subnets.v4,
            network_v6: own.network_v6,
            subnet_v6: own.subnets.v6,
            mtu: Some(mtu),
            ip_masq: Some(ip_masq),
        }
    }

    /// The subnets that the node had.
    pub fn subnets(&self) -> Subnets {
        Subnets { v4: self.subnet, v6: self.subnet_v6 }
    }

    /// The file's text: the node's subnets with their first host address, as the bridge will have it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |key: &str, value: Option<String>| {
            if let Some(value) = value {
                text.push_str(&format!("{key}={value}\n"));
            }
        };
        line("FLANNEL_NETWORK", self.network.map(|net| net.to_string()));
        line("FLANNEL_SUBNET", self.subnet.map(|net| format!("{}/{}", next(net.network()), net.prefix_len())));
        line("FLANNEL_IPV6_NETWORK", self.network_v6.map(|net| net.to_string()));
        line(
            "FLANNEL_IPV6_SUBNET",
            self.subnet_v6.map(|net| format!("{}/{}", next_v6(net.network()), net.prefix_len())),
        );
        line("FLANNEL_MTU", self.mtu.map(|mtu| mtu.to_string()));
        line("FLANNEL_IPMASQ", self.ip_masq.map(|flag| flag.to_string()));
        text
    }

    /// Reads a file's text.
    pub fn parse(text: &str) -> SubnetEnv {
        let mut env = SubnetEnv::default();
        for (key, value) in text.lines().filter_map(|line| line.trim().split_once('=')) {
            let value = value.trim_matches(['"', '\'']);
            match key {
                "FLANNEL_NETWORK" => env.network = parsed::<Ipv4Net>(value).map(|net| net.trunc()),
                "FLANNEL_SUBNET" => env.subnet = parsed::<Ipv4Net>(value).map(|net| net.trunc()),
                "FLANNEL_IPV6_NETWORK" => env.network_v6 = parsed::<Ipv6Net>(value).map(|net| net.trunc()),
                "FLANNEL_IPV6_SUBNET" => env.subnet_v6 = parsed::<Ipv6Net>(value).map(|net| net.trunc()),
                "FLANNEL_MTU" => env.mtu = parsed(value),
                "FLANNEL_IPMASQ" => env.ip_masq = parsed(value),
                _ => {}
            }
        }
        env
    }

    /// Reads a file. One that does not exist says nothing.
    pub fn read(path: &Path) -> io::Result<SubnetEnv> {
        match fs::metadata(path) {
            Ok(metadata) if metadata.len() > LEN_MAX => {
                Err(io::Error::new(io::ErrorKind::InvalidData, format!("it is longer than {LEN_MAX} bytes")))
            }
            Ok(_) => Ok(SubnetEnv::parse(&String::from_utf8_lossy(&fs::read(path)?))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(SubnetEnv::default()),
            Err(error) => Err(error),
        }
    }

    /// Writes a file whole, by rename, readable for everybody whatever the umask; makes its directory.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let directory = match path.parent() {
            Some(directory) if directory != Path::new("") => directory,
            _ => Path::new("."),
        };
        DirBuilder::new().recursive(true).mode(0o755).create(directory)?;
        let name = path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it names no file"))?;
        // In the same directory, since a rename does not leave its file system.
        let temporary = directory.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
        let written = fs::File::create(&temporary).and_then(|mut file| {
            file.set_permissions(Permissions::from_mode(0o644))?;
            file.write_all(self.text().as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        });
        if written.is_err() {
            // The error that counts is the first one.
            let _ = fs::remove_file(&temporary);
        }
        written
    }
}

fn parsed<T: FromStr>(value: &str) -> Option<T> {
    value.parse().ok()
}

fn next(address: std::net::Ipv4Addr) -> std::net::Ipv4Addr {
    u32::from(address).wrapping_add(1).into()
}

fn next_v6(address: std::net::Ipv6Addr) -> std::net::Ipv6Addr {
    u128::from(address).wrapping_add(1).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dual() -> SubnetEnv {
        let own = OwnLease {
            network: Some("10.1.0.0/16".parse().unwrap()),
            network_v6: Some("fd00:1::/48".parse().unwrap()),
            subnets: Subnets {
                v4: Some("10.1.74.0/24".parse().unwrap()),
                v6: Some("fd00:1:0:4a::/64".parse().unwrap()),
            },
        };
        SubnetEnv::new(&own, 1472, true)
    }

    #[test]
    fn lines_stand_in_the_order_of_stock_flannel() {
        let text = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_IPV6_NETWORK=fd00:1::/48\n\
                    FLANNEL_IPV6_SUBNET=fd00:1:0:4a::1/64\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n";
        assert_eq!(dual().text(), text);
        assert_eq!(SubnetEnv::parse(text), dual());
        let v4 = SubnetEnv { network_v6: None, subnet_v6: None, ip_masq: Some(false), ..dual() };
        let text = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n";
        assert_eq!(v4.text(), text);
    }

    #[test]
    fn a_line_that_makes_no_sense_counts_as_missing() {
        let cases = [
            "FLANNEL_SUBNET=",
            "FLANNEL_SUBNET=10.1.74.1",
            "FLANNEL_SUBNET=10.1.74.1/24,10.1.75.1/24",
            "FLANNEL_SUBNET=fd00::1/64",
            "FLANNEL_SUBNET 10.1.74.1/24",
            "export FLANNEL_SUBNET=10.1.74.1/24",
            "#FLANNEL_SUBNET=10.1.74.1/24",
        ];
        for text in cases {
            assert_eq!(SubnetEnv::parse(text).subnet, None, "{text}");
        }
        assert_eq!(SubnetEnv::parse("FLANNEL_MTU=-1\nFLANNEL_IPMASQ=yes\n"), SubnetEnv::default());
    }

    #[test]
    fn a_file_is_written_whole_with_mode_and_directory() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("run/flannel/subnet.env");
        assert_eq!(SubnetEnv::read(&path).unwrap(), SubnetEnv::default());
        SubnetEnv::default().write(&path).unwrap();
        dual().write(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o644);
        assert_eq!(SubnetEnv::read(&path).unwrap(), dual());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_nothing_behind() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("subnet.env");
        fs::create_dir(&path).unwrap();
        assert!(dual().write(&path).is_err());
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }
}
