//go:build lab

package lab

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
)

// TestNeighbours uses Hatch on a host that runs other things beside it, and whose
// administrator changes it.
func TestNeighbours(t *testing.T) {
	if testing.Short() {
		t.Skip("a boot of a host and eight rows; make test-lab runs them")
	}
	w := newWorld(t, Debian12, "xfs", "minimal")
	openInternet(t, w)
	var tests []hostTest
	for _, f := range firewalls {
		tests = append(tests, hostTest{f.name, func(t *testing.T, w *world) { testFirewall(t, w, f) }})
	}
	w.runAll(t, append(tests,
		hostTest{"IPv6 on the host", testIPv6},
		hostTest{"swap and AppArmor on", testSwap},
		hostTest{"the clock jumps", testClockJumps},
		hostTest{"QEMU is upgraded", testUpgrade},
	))
}

// The internet that a host of the lab reaches: a namespace of it.
const (
	internetAddr = "203.0.113.2"
	routerAddr   = "198.51.100.2"
	uplinkAddr   = "198.51.100.1" // the host's; guests do not reach its network
	knownName    = "internet.example"
)

// internet greets clients on port 80 with their address, and resolves each name to
// its own.
const internet = `
import socket, threading
def greet():
    listener = socket.create_server(("", 80))
    while True:
        client, address = listener.accept()
        client.sendall(("hello " + address[0] + "\n").encode())
        client.close()
threading.Thread(target=greet).start()
queries = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
queries.bind(("203.0.113.2", 53)) # answers come from where they were asked
while True:
    query, address = queries.recvfrom(4096)
    end = query.index(b"\0", 12) + 5
    header = query[:2] + b"\x81\x80\0\1\0\1\0\0\0\0"
    answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton("203.0.113.2")
    queries.sendto(header + query[12:end] + answer, address)
`

// openInternet connects the host with a small internet.
func openInternet(t *testing.T, w *world) {
	t.Helper()
	for _, command := range []string{
		"ip netns add internet && ip link add uplink type veth peer name eth0 netns internet",
		"ip addr add " + uplinkAddr + "/24 dev uplink && ip link set uplink up",
		"ip -n internet addr add " + routerAddr + "/24 dev eth0 && ip -n internet link set eth0 up && ip -n internet link set lo up",
		"ip -n internet addr add " + internetAddr + "/32 dev lo && ip route add " + internetAddr + " via " + routerAddr,
		"cat >/run/internet.py <<'END'" + internet + "END",
		"systemd-run -q --unit=internet ip netns exec internet python3 /run/internet.py",
		"echo nameserver " + internetAddr + " >/etc/resolv.conf",
		"until nft list set inet hatch local | grep -q 198.51.100.0/24; do sleep 0.5; done", // hatchd has seen the new network
	} {
		w.run(t, command)
	}
}

// firewall is one that runs beside Hatch.
type firewall struct {
	name  string
	start string
	admit string // lets guests' packets through; "" for what the doctor says
	again string // makes the firewall load its rules again
	stop  string
}

// firewalldLoaded waits for firewalld's last rule: it loads them after its start.
const firewalldLoaded = "until nft list chain inet firewalld filter_FORWARD 2>/dev/null | grep -q admin-prohibited; do sleep 0.5; done"

var firewalls = []firewall{
	{
		name: "nftables",
		start: `cat >/etc/nftables.conf <<'END'
flush ruleset
table inet filter {
	chain input {
		type filter hook input priority filter; policy drop;
		ct state established,related accept
		iifname { "lo", "hatch0" } accept
		tcp dport 22 accept
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
		iifname "hatch0" accept
		oifname "hatch0" accept
	}
}
END
systemctl start nftables`,
		admit: "true",
		again: "systemctl reload nftables && until nft list table inet hatch >/dev/null 2>&1; do sleep 0.1; done", // it flushes all tables
		stop:  "systemctl stop nftables",
	},
	{
		name:  "firewalld",
		start: "systemctl start firewalld && " + firewalldLoaded,
		again: "firewall-cmd --reload && " + firewalldLoaded,
		stop:  "firewall-cmd --permanent --zone=trusted --remove-interface=hatch0; systemctl stop firewalld",
	},
	{
		name:  "ufw",
		start: "ufw allow 22/tcp && ufw --force enable",
		admit: "ufw allow in on hatch0 && ufw route allow in on hatch0 && ufw route allow out on hatch0",
		again: "ufw reload",
		stop:  "ufw --force reset && nft list tables | grep -v hatch | while read -r _ family table; do nft delete table $family $table; done",
	},
	{
		name: "Docker",
		// Docker sets this policy if it, and not hatchd, switches forwarding on.
		start: "systemctl start docker && iptables -P FORWARD DROP",
		admit: "iptables -I DOCKER-USER -i hatch0 -j ACCEPT && iptables -I DOCKER-USER -o hatch0 -j ACCEPT",
		again: "systemctl restart docker",
		stop: "systemctl stop docker.socket docker containerd && ip link delete docker0" +
			" && nft list tables | grep -v hatch | while read -r _ family table; do nft delete table $family $table; done",
	},
}

// testFirewall runs a guest beside a firewall that drops by default: the doctor says
// so, guests pass once the administrator lets them, and neither side touches the
// other's rules.
func testFirewall(t *testing.T, w *world, f firewall) {
	v := w.create(t, "beside-"+strings.ToLower(f.name), "auto")
	w.run(t, f.start)
	defer w.run(t, f.stop)
	if f.admit != "true" {
		admit(t, w, f)
	}
	if c := w.doctor(t)["firewall"]; c.Status != "pass" {
		t.Errorf("the doctor says %s: %s", c.Status, c.Message)
	}
	theirs := foreignRules(t, w)
	requireNetwork(t, w, v)
	w.run(t, "systemctl restart hatchd")
	w.connect(t)
	second := w.create(t, "second", "auto")
	requireNetwork(t, w, second)
	w.remove(t, second.ID)
	if now := foreignRules(t, w); now != theirs {
		t.Errorf("the firewall's rules were\n%s\nand are\n%s", theirs, now)
	}
	w.run(t, f.again)
	requireNetwork(t, w, v)
	w.remove(t, v.ID)
}

// admit does what the documentation or the doctor says, until the doctor is content.
func admit(t *testing.T, w *world, f firewall) {
	t.Helper()
	c := w.doctor(t)["firewall"]
	if c.Status != "warn" || c.Fix == "" {
		t.Fatalf("the doctor says %s: %s; fix: %q", c.Status, c.Message, c.Fix)
	}
	if f.admit != "" {
		w.run(t, f.admit)
		return
	}
	for range 4 { // one chain at a time
		if c.Status == "pass" {
			return
		}
		w.run(t, c.Fix)
		c = w.doctor(t)["firewall"]
	}
}

// foreignRules returns the rules that are not Hatch's.
func foreignRules(t *testing.T, w *world) string {
	t.Helper()
	return w.run(t, "nft list tables | grep -v ' hatch$' | while read -r _ family table; do nft -s list table $family $table; done 2>/dev/null") // it warns of iptables' own
}

// requireNetwork checks that a guest reaches the internet and resolves names, and that
// its SSH port leads to it.
func requireNetwork(t *testing.T, w *world, v api.VM) {
	t.Helper()
	w.inside(t, v.ID, "mkdir -p /www && echo kept >/www/greeting && { pidof httpd || httpd -p 22 -h /www; }")
	if got := w.inside(t, v.ID, "nc -w 20 "+internetAddr+" 80 </dev/null"); got != "hello "+uplinkAddr {
		t.Errorf("the internet says %q", got)
	}
	if got := w.inside(t, v.ID, "nslookup "+knownName); !strings.Contains(got, internetAddr) {
		t.Errorf("%s is %q", knownName, got)
	}
	if got := w.run(t, fmt.Sprintf("curl -sS --max-time 30 http://127.0.0.1:%d/greeting", v.SSHPort)); got != "kept" {
		t.Errorf("its SSH port says %q", got)
	}
}

// testIPv6 checks that a host with IPv6 does not give guests a way around its rules.
func testIPv6(t *testing.T, w *world) {
	w.run(t, "ip link add six type dummy && ip -6 addr add 2001:db8::1/64 dev six nodad && ip link set six up")
	defer w.run(t, "ip link delete six")
	forwarding := w.run(t, "sysctl -n net.ipv6.conf.all.forwarding")
	a, b := w.create(t, "six-a", "auto"), w.create(t, "six-b", "auto")
	for n, v := range []api.VM{a, b} {
		requireNetwork(t, w, v)
		w.inside(t, v.ID, fmt.Sprintf("ip -6 addr add 2001:db8:1::%d/64 dev eth0; ip -6 route add 2001:db8::/64 dev eth0; httpd -p 8000 -h /", n+2))
	}
	for what, target := range map[string]string{
		"the host's SSH server": "2001:db8::1 22", "the other guest": "2001:db8:1::3 8000",
	} {
		if got := w.inside(t, a.ID, "nc -w 5 "+target+" </dev/null && echo reached || true"); got != "" {
			t.Errorf("%s answers over IPv6: %q", what, got)
		}
	}
	if got := w.run(t, "ip -6 -o addr show dev hatch0"); got != "" {
		t.Errorf("the bridge has %s", got)
	}
	if now := w.run(t, "sysctl -n net.ipv6.conf.all.forwarding"); now != forwarding {
		t.Errorf("IPv6 forwarding was %s and is %s", forwarding, now)
	}
	w.remove(t, a.ID)
	w.remove(t, b.ID)
}

// testSwap leads a guest's life while the host swaps, and AppArmor confines what it
// knows.
func testSwap(t *testing.T, w *world) {
	if got := w.run(t, "cat /sys/module/apparmor/parameters/enabled; systemctl is-active apparmor"); got != "Y\nactive" {
		t.Errorf("AppArmor is %q", got)
	}
	w.run(t, "fallocate -l 1G /swap && chmod 0600 /swap && mkswap /swap && swapon /swap")
	defer w.run(t, "swapoff /swap && rm /swap")
	if c := w.doctor(t)["swap"]; c.Status == "" || c.Status == "fail" {
		t.Errorf("the doctor says %q: %s", c.Status, c.Message)
	}
	testLife(t, w, "auto", "firecracker")
	testLife(t, w, "qemu", "qemu")
}

// testClockJumps sets the host's clock forth and back under a running and a sleeping
// guest.
func testClockJumps(t *testing.T, w *world) {
	v, asleep := w.create(t, "jumps", "auto"), w.create(t, "jumps-asleep", "auto")
	w.do(t, "sleep", asleep.ID, api.StateSnapshotted, w.client.SleepVM)
	boot := w.bootID(t, v.ID)
	for _, jump := range []string{"+3 days", "-6 days", "+3 days"} {
		w.run(t, "date -s \"$(date -d '"+jump+"')\"")
		if w.bootID(t, v.ID) != boot {
			t.Errorf("after %s the guest has booted again", jump)
		}
		w.do(t, "sleep", v.ID, api.StateSnapshotted, w.client.SleepVM)
		w.do(t, "wake", v.ID, api.StateRunning, w.client.WakeVM)
		host, guest := w.run(t, "date +%s"), w.inside(t, v.ID, "date +%s")
		if apart := seconds(t, guest) - seconds(t, host); apart < -5 || apart > 120 {
			t.Errorf("after %s and a wake the guest's clock is %d s ahead", jump, apart)
		}
	}
	if now, err := w.client.GetVM(t.Context(), asleep.ID); err != nil || now.State != api.StateSnapshotted {
		t.Errorf("the other is %s (%s), %v", now.State, now.StateReason, err)
	}
	w.inside(t, asleep.ID, "true")
	w.remove(t, v.ID)
	w.remove(t, asleep.ID)
}

// testUpgrade installs a newer QEMU under running and sleeping VMs.
func testUpgrade(t *testing.T, w *world) {
	running, asleep := w.create(t, "upgraded", "qemu"), w.create(t, "upgraded-asleep", "qemu")
	boot := w.bootID(t, running.ID)
	before := w.run(t, "qemu-system-x86_64 --version | head -n 1")
	w.do(t, "durable sleep", asleep.ID, api.StateSnapshotted, w.client.SleepVMDurably)
	w.run(t, "dpkg -i /srv/upgrade/*.deb")
	if after := w.run(t, "qemu-system-x86_64 --version | head -n 1"); after == before {
		t.Fatalf("after the upgrade it is still %s", before)
	}
	for _, command := range []string{"true", "systemctl restart hatchd"} {
		w.run(t, command)
		w.connect(t)
		if w.bootID(t, running.ID) != boot {
			t.Error("the running guest has booted again")
		}
	}
	if _, err := w.client.SleepVM(t.Context(), running.ID); !client.HasCode(err, "vmm_replaced") {
		t.Errorf("a sleep gives %v", err)
	}
	if _, err := w.client.WakeVM(t.Context(), asleep.ID); !client.HasCode(err, "saved_unusable") {
		t.Errorf("a wake gives %v", err)
	}
	for _, v := range []api.VM{running, asleep} {
		w.do(t, "stop", v.ID, api.StateStopped, w.client.StopVM)
		w.do(t, "start", v.ID, api.StateRunning, w.client.StartVM)
		w.await(t, v.ID, "ready")
		w.do(t, "sleep", v.ID, api.StateSnapshotted, w.client.SleepVM)
		w.inside(t, v.ID, "true")
		w.remove(t, v.ID)
	}
}

func seconds(t *testing.T, text string) int64 {
	t.Helper()
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}
