"""A unit file with every key, some of them in other than their canonical form."""

EVERY_KEY = b"""\
[bridge.br-lan]
ports = ["eth1", "mac:52:54:00:AA:00:01", "pci:0000:0a:00.1"]
addresses = ["192.168.0.1/24", "fd00::1/64"]
mac = "de:ad:be:ef:24:31"
mtu = 1500
stp = false
adopt = false
dhcp = { range = ["192.168.0.100", "192.168.0.150"], lease = "72h", ports = true }
ipv6 = "routed"
uplink = "eth0"
gateway = ["192.168.0.254", "fd00::fe"]
routes = [{ to = "10.0.0.0/8", via = "192.168.0.253", metric = 100 }, { to = "fd01::/64", via = "fd00::fd" }]
dns = { upstream = ["9.9.9.9"], domain = "lan" }

[bridge.br-lan.vlan.20]
addresses = ["192.168.20.1/24"]
name = "lan20"

[vlan.v30]
link = "eth2"
id = 30
addresses = ["192.168.30.1/24"]
[bridge.br-wan]
ports = ["eth2"]
adopt-addresses = true
probe = ["192.0.2.1"]
probe-timeout = "20s"
confirm = "2m"

[vm.web]
cpus = 2
max-cpus = 2
memory = "1G"
balloon = "512M"
machine = "q35"
cpu = "max"
accel = "tcg"
kernel = "/srv/vm/vmlinuz"
initrd = "/srv/vm/initrd"
append = "root=/dev/vda"
extra-args = ["-device", "a,b=c", "-device", "a"]
vnc = "127.0.0.1:01"
restart = "always"
stop-timeout = "5m"
after = ["vm:db"]
description = "the shop, \xc3\xa4"
enabled = true
cpu-weight = 200
cpu-quota = "150%"
io-weight = 50
tasks = 82
uuid = "6B6C4B0E-1d2f-4c58-9d1b-2f6c5d0a7e11"
[vm.web.disk.root]
path = "/srv/vm/web.qcow2"
size = "32G"
format = "qcow2"
cache = "none"
read-only = false
discard = true
iops = 500
bandwidth = "50M"
[vm.web.disk.cd]
media = "cdrom"
path = "/srv/a.iso"
bus = "virtio"
read-only = true
[vm.web.nic.wan]
direct = "eth2"
queues = "auto"
vhost = "auto"
[vm.web.nic.lan]
bridge = "br-lan"
mac = "DE:ad:be:ef:32:10"
tap = "lan-tap"
model = "e1000e"
mtu = 1400
link = "down"
rate-in = "10Mbit"
rate-out = "512kbit"
address = "192.168.0.100"
anti-spoof = true
serves = ["dhcp", "ra"]
isolated = true
allow = ["022/tcp  from 10.0.0.0/8", "icmp", "from fd00::/64", "5000-5010/udp"]
deny = ["25/tcp to 0.0.0.0/0", "to 192.0.2.7/32"]
trunk = [20, "100-120", 10]
native = 1
[vm.web.nic.dmz]
bridge = "br-lan"
vlan = 20
"""
