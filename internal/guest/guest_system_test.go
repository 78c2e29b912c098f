//go:build system

package guest_test

import (
	"context"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/vm"
)

const testMAC = "02:fc:0a:00:02:0f"

// The addresses are those of QEMU's user network.
const network = "hatch.ip=10.0.2.15/24 hatch.gw=10.0.2.2 hatch.dns=10.0.2.3 hatch.mac=" + testMAC

var applets = []string{"bin/sh", "bin/cat", "bin/hostname", "bin/ip", "bin/mount", "bin/sleep", "bin/touch", "bin/ls", "bin/ps", "bin/mkdir", "bin/mv", "bin/echo"}

// inittab makes the guest print its state on the console, line by line.
const inittab = "::sysinit:/etc/init.d/rcS\n::shutdown:/bin/echo init-is-shutting-down\n"

const rcS = `#!/bin/sh
exec >/dev/console 2>&1
echo "is hostname=$(hostname)"
echo "is etc-hostname=$(cat /etc/hostname)"
echo "is resolver=$(cat /etc/resolv.conf)"
echo "is route=$(ip route show default)"
echo "is mounts=$(cat /proc/mounts | while read a b c d; do echo -n "$b:$c "; done)"
touch /written && echo "is writable"
for p in /proc/[0-9]*; do [ "$(cat $p/comm)" = hatch-agent ] && echo "is agent-oom=$(cat $p/oom_score_adj)"; done
`

func busyboxGuest(t *testing.T, files map[string]string) bootOptions {
	t.Helper()
	all := map[string]string{"etc/inittab": inittab, "etc/init.d/rcS": rcS}
	maps.Copy(all, files)
	dir := t.TempDir()
	o := bootOptions{
		base: filepath.Join(dir, "base"), disk: filepath.Join(dir, "disk"), nic: testMAC, overlay: true,
		cmdline: "hatch.mode=overlay hatch.rootfs=ext4 hatch.hostname=web-1 " + network,
	}
	formatDisk(t, o.base, busyboxTree(t, append(applets, "sbin/init"), all), 16)
	formatDisk(t, o.disk, "", 32)
	return o
}

func (m *machine) requireConsole(within time.Duration, wanted ...string) {
	m.t.Helper()
	deadline := time.After(within)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for _, w := range wanted {
		for !strings.Contains(strings.ReplaceAll(m.console.String(), "\r", ""), w) {
			select {
			case <-tick.C:
			case <-deadline:
				m.t.Fatalf("the console does not show %q", w)
			}
		}
	}
}

// powerOff returns once the guest has accepted to power off.
func powerOff(t *testing.T, g vm.Session) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	accepted := false
	if err := g.Shutdown(ctx, false, func() { accepted = true; cancel() }); !accepted {
		t.Fatal(err)
	}
}

func TestGuestBootsReportsAndPowersOff(t *testing.T) {
	m := startMachine(t, busyboxGuest(t, nil))
	g, reports := m.connect()
	r := m.await(reports, "ready", bootTimeout, ready)
	t.Logf("QEMU start to agent ready: %v", time.Since(m.started).Round(time.Millisecond))
	if r.AgentVersion != "test" || r.CloudInit.Status != "absent" {
		t.Errorf("got %+v", r)
	}
	if want := netip.MustParseAddr("10.0.2.15"); !slices.Contains(r.Addresses, want) {
		t.Errorf("addresses %v, want %v among them", r.Addresses, want)
	}
	m.requireConsole(30*time.Second, "is hostname=web-1\n", "is etc-hostname=web-1\n", "is resolver=nameserver 10.0.2.3\n",
		"is route=default via 10.0.2.2 dev eth0", "/:overlay", "/dev:devtmpfs", "/proc:proc", "/sys:sysfs", "/run:tmpfs", "is writable", "is agent-oom=-900")

	powerOff(t, g)
	m.awaitExit(30 * time.Second)
	m.requireConsole(0, "init-is-shutting-down")
}

// TestCloudInitIsWatched boots an image with cloud-init, and with files that the agent
// writes otherwise.
func TestCloudInitIsWatched(t *testing.T) {
	steps := rcS + `mkdir -p /run/cloud-init
echo '{"v1":{"errors":["boom went the module"]}}' > /run/cloud-init/.new
sleep 2
mv /run/cloud-init/.new /run/cloud-init/result.json
`
	m := startMachine(t, busyboxGuest(t, map[string]string{
		"etc/init.d/rcS": steps, "usr/bin/cloud-init": "#!/bin/sh\n", "etc/hostname": "of-the-image\n", "etc/resolv.conf": "nameserver 192.0.2.1\n",
	}))
	_, reports := m.connect()
	m.await(reports, "cloud-init running", bootTimeout, func(r *vm.GuestReport) bool { return r != nil && r.CloudInit.Status == "running" })
	r := m.await(reports, "cloud-init ended", 30*time.Second, func(r *vm.GuestReport) bool { return r != nil && r.CloudInit.Status != "running" })
	if r.CloudInit.Status != "error" || !slices.Equal(r.CloudInit.Errors, []string{"boom went the module"}) {
		t.Errorf("got %+v", r.CloudInit)
	}
	m.requireConsole(10*time.Second, "is hostname=web-1\n", "is etc-hostname=of-the-image\n", "is resolver=nameserver 192.0.2.1\n")
}

func TestSessionSurvivesAReconnect(t *testing.T) {
	m := startMachine(t, busyboxGuest(t, nil))
	g, reports := m.connect()
	m.await(reports, "ready", bootTimeout, ready)
	for i := range 3 {
		if err := g.Close(); err != nil {
			t.Fatal(err)
		}
		g, reports = m.connect()
		began := time.Now()
		m.await(reports, "ready again", 10*time.Second, ready)
		took := time.Since(began).Round(time.Millisecond)
		t.Logf("reconnect %d: %v", i, took)
		if took > 900*time.Millisecond {
			t.Errorf("reconnect %d took %v: its first handshake was lost", i, took)
		}
	}
}

func TestSessionSurvivesGarbage(t *testing.T) {
	m := startMachine(t, busyboxGuest(t, nil))
	g, reports := m.connect()
	m.await(reports, "ready", bootTimeout, ready)
	if err := g.Close(); err != nil {
		t.Fatal(err)
	}
	conn, err := m.dial(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("hatch-agent sync 1 0123\ngarbage without an end")); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	_, reports = m.connect()
	m.await(reports, "ready after garbage", 10*time.Second, ready)
}

func TestSessionSurvivesAReboot(t *testing.T) {
	m := startMachine(t, busyboxGuest(t, nil))
	g, reports := m.connect()
	m.await(reports, "ready", bootTimeout, ready)
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := g.Shutdown(ctx, true, func() {}); err != nil {
		t.Fatal(err)
	}
	m.await(reports, "loss noticed", 30*time.Second, lost)
	began := time.Now()
	m.await(reports, "ready after the reboot", bootTimeout, ready)
	t.Logf("loss noticed to ready: %v", time.Since(began).Round(time.Millisecond))
}

func TestSessionSurvivesASuddenReset(t *testing.T) {
	m := startMachine(t, busyboxGuest(t, nil))
	_, reports := m.connect()
	m.await(reports, "ready", bootTimeout, ready)
	m.qmp("system_reset")
	began := time.Now()
	m.await(reports, "loss noticed", 12*time.Second, lost)
	t.Logf("reset to loss noticed: %v", time.Since(began).Round(time.Millisecond))
	m.await(reports, "ready after the reset", bootTimeout, ready)
	t.Logf("reset to ready: %v", time.Since(began).Round(time.Millisecond))
}

func TestSessionSurvivesAPause(t *testing.T) {
	m := startMachine(t, busyboxGuest(t, nil))
	_, reports := m.connect()
	m.await(reports, "ready", bootTimeout, ready)
	m.qmp("stop")
	m.await(reports, "loss noticed", 15*time.Second, lost)
	m.qmp("cont")
	began := time.Now()
	m.await(reports, "ready after the pause", 30*time.Second, ready)
	t.Logf("resume to ready: %v", time.Since(began).Round(time.Millisecond))
}

func TestAgentIsInitOfAnImageWithoutOne(t *testing.T) {
	dir := t.TempDir()
	o := bootOptions{
		base: filepath.Join(dir, "base"), disk: filepath.Join(dir, "disk"), overlay: true,
		cmdline: "hatch.mode=overlay hatch.rootfs=ext4 hatch.hostname=web-1",
	}
	formatDisk(t, o.base, busyboxTree(t, applets, nil), 16)
	formatDisk(t, o.disk, "", 32)
	m := startMachine(t, o)
	g, reports := m.connect()
	m.await(reports, "ready", bootTimeout, ready)
	m.requireConsole(30*time.Second, "the image has no init", "/ # ")
	powerOff(t, g)
	m.awaitExit(20 * time.Second)
	if console := m.console.String(); strings.Contains(console, "Kernel panic") {
		t.Errorf("the kernel panicked")
	}
}

func TestCopyModeBootsFromOneDisk(t *testing.T) {
	o := bootOptions{
		disk: filepath.Join(t.TempDir(), "disk"), nic: testMAC,
		cmdline: "hatch.mode=copy hatch.rootfs=ext4 hatch.hostname=web-1 " + network,
	}
	formatDisk(t, o.disk, busyboxTree(t, append(applets, "sbin/init"), map[string]string{"etc/inittab": inittab, "etc/init.d/rcS": rcS}), 16)
	m := startMachine(t, o)
	_, reports := m.connect()
	m.await(reports, "ready", bootTimeout, ready)
	m.requireConsole(30*time.Second, "is etc-hostname=web-1\n", "/:ext4", "is writable")
}
