package lifecycle_test

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/event"
	"github.com/hatchvm/hatch/internal/fake"
	"github.com/hatchvm/hatch/internal/fake/driver"
	"github.com/hatchvm/hatch/internal/host/httpprobe"
	"github.com/hatchvm/hatch/internal/host/jail"
	"github.com/hatchvm/hatch/internal/host/memory"
	"github.com/hatchvm/hatch/internal/host/rootfs"
	snapshotfiles "github.com/hatchvm/hatch/internal/host/snapshot"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/machine"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/reach"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/store"
	"github.com/hatchvm/hatch/internal/store/storetest"
	"github.com/hatchvm/hatch/internal/template"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vm/capacity"
	"github.com/hatchvm/hatch/internal/vm/hostpower"
	"github.com/hatchvm/hatch/internal/vm/lifecycle"
	"github.com/hatchvm/hatch/internal/vm/live"
	"github.com/hatchvm/hatch/internal/vmm"
)

const owner = access.AdminID

// world is a service with a real store and a fake host. calls are those of the
// host and of the store that a test can make fail.
type world struct {
	*lifecycle.Service
	store      *store.Store
	driver     *driver.Driver
	driverName string // by which the service knows it
	initramfs  string // that guests boot; "": /initramfs

	image     image.Image
	root      string // of the VMs' directories
	memories  *memory.Keeper
	memMiB    int64                 // that VMs may take
	diskMiB   func() (int64, error) // likewise; nil: much
	snapshots *snapshot.Service

	snapshotFiles *snapshotfiles.Files
	warm          lifecycle.Warm   // nil: every VM boots
	idle          capacity.Evictor // nil: no VM is put to sleep for another
	holdPersist   chan struct{}    // memory becomes durable once it is closed; nil: at once
	hostPower     hostpower.Settings
	policy        machine.IdlePolicy
	heartbeat     live.Heartbeat // the zero value: the default one
	hasRoom       func() bool    // on the host's disk, for guests that stand still; nil: yes
	bootID        string         // of the host; "": the real one

	dial   func(ctx context.Context, to netip.AddrPort) (net.Conn, error) // to guests' addresses; nil: none answers
	second *driver.Driver                                                 // another driver, "mute"; nil: there is one only

	calls    *fake.Calls
	network  *fake.Network
	forwards *fake.Forwards
	files    *fake.Files
	consoles *fake.Consoles
	guests   *fake.Guests

	mu        sync.Mutex
	prepared  int64                        // bytes of memory that there was to be room for, when it was last asked
	templates map[string]template.Template // by id
}

// newWorld makes a world with its own store; closed at the end of the test.
func newWorld(t *testing.T) *world {
	t.Helper()
	st := storetest.Open(t)
	for _, id := range []string{owner, access.SystemID} {
		if err := st.InsertUser(t.Context(), access.User{ID: id, Name: id, CreatedAt: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	w := &world{store: st, driver: driver.New(), driverName: "fake", root: filepath.Join(t.TempDir(), "vms"), memMiB: 16 << 10, guests: &fake.Guests{}}
	w.hostPower = hostpower.Settings{Policy: hostpower.Sleep, Timeout: 10 * time.Second, Autostart: true}
	w.calls = w.driver.Calls
	w.files = fake.NewFiles(w.root, w.calls)
	var err error
	if w.memories, err = memory.In(t.TempDir(), w.files.Dir); err != nil {
		t.Fatal(err)
	}
	if w.snapshotFiles, err = snapshotfiles.Open(t.TempDir(), 0); err != nil {
		t.Fatal(err)
	}
	w.image = w.addImage(t)
	w.serve(t)
	t.Cleanup(func() { w.shut(t); _ = w.snapshotFiles.Close(); _ = w.memories.Close(); _ = st.Close() })
	return w
}

func (w *world) addImage(t *testing.T) image.Image {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	file, err := rootfs.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	img := image.Image{
		ID: image.DefaultID, OwnerID: owner, Kernel: file, Rootfs: file,
		RootfsFormat: "ext4", DiskMode: image.DiskOverlay, CreatedAt: time.Now(),
	}
	if err := w.store.UpsertImage(t.Context(), img); err != nil {
		t.Fatal(err)
	}
	return img
}

// serve starts a service over the world, as a daemon does.
func (w *world) serve(t *testing.T) {
	t.Helper()
	w.open(t)
	faulty := w.calls.Pending("Adopt")
	if err := w.Recover(t.Context(), "/"); err != nil && !faulty {
		t.Fatal(err)
	}
}

// Guest opens a session and ends its use at once.
func (w *world) Guest(ctx context.Context, scope access.Scope, id string) (vm.Session, error) {
	return w.session(ctx, scope, id, reach.Wake)
}

// AwakeGuest is Guest for a VM that must not be woken.
func (w *world) AwakeGuest(ctx context.Context, scope access.Scope, id string) (vm.Session, error) {
	return w.session(ctx, scope, id, reach.NoWake)
}

func (w *world) session(ctx context.Context, scope access.Scope, id string, mode reach.Mode) (vm.Session, error) {
	session, release, err := w.Reach().Open(ctx, scope, id, reach.Exec, mode)
	if err == nil {
		release()
	}
	return session, err
}

// open makes a service over the world that has adopted nothing yet.
func (w *world) open(t *testing.T) {
	t.Helper()
	w.network = &fake.Network{Calls: w.calls, Carried: network.Traffic{RxBytes: 1, TxBytes: 2, RxPackets: 3, TxPackets: 4}}
	w.forwards, w.consoles = &fake.Forwards{Calls: w.calls}, &fake.Consoles{Calls: w.calls}
	w.guests = &fake.Guests{Calls: w.calls, Usage: w.guests.Usage, DialPort: w.guests.DialPort}
	bridged, err := network.New("hatch0", "172.16.0.1/24")
	if err != nil {
		t.Fatal(err)
	}
	w.snapshots = snapshot.New(w.store, w.snapshotFiles, snapshot.Limits{PerVM: 10}, slog.New(slog.DiscardHandler))
	if err := w.snapshots.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.Service = lifecycle.New(lifecycle.Deps{
		Store: faultyStore{w.store, w.calls}, Images: images{w}, Templates: templates{w}, Network: w.network,
		Forwards: w.forwards, Files: w.files, Memories: faultyMemories{w.memories, w}, Guests: w.guests, Consoles: w.consoles,
		Snapshots: w.snapshots, SnapshotFiles: faultySnapshots{w.snapshotFiles, w.calls}, Warm: w.warm, Idle: w.idle,
		Host: host{w}, Drivers: w.drivers(), Log: slog.New(slog.DiscardHandler),
		PageStatus: httpprobe.Status, Dial: w.dial, HasRoom: w.hasRoom,
	}, lifecycle.Settings{
		DefaultDriver: w.driverName, VCPUs: 1, MemMiB: 512, DiskMiB: 1024, BootArgs: "console=ttyS0",
		StopTimeout: 200 * time.Millisecond,
		Pools: network.Pools{
			Network: bridged, SSHMin: 16000, SSHMax: 16099, PortMin: 26001, PortMax: 26099, UIDMin: 900000, UIDMax: 900099,
			TapPrefix: "htap",
		},
		HostPower: w.hostPower, Idle: w.policy, Heartbeat: w.heartbeat,
	})
}

func (w *world) drivers() map[string]vmm.Driver {
	all := map[string]vmm.Driver{w.driverName: w.driver}
	if w.second != nil {
		all["mute"] = w.second
	}
	return all
}

// shut closes the service as a daemon that ends does; machines live on.
func (w *world) shut(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := w.Close(ctx); err != nil {
		t.Error(err)
	}
}

// failAdopts makes the next adoptions fail.
func (w *world) failAdopts(times int) {
	w.calls.Fail("Adopt", times, errors.New("injected: the VMM does not answer"))
}

// requireNothing fails the test when anything of the host is still in use.
func (w *world) requireNothing(t *testing.T) {
	t.Helper()
	links, forwards, consoles, guests := w.network.Links(), w.forwards.VMs(), w.consoles.VMs(), w.guests.Sessions()
	files, err := w.files.Orphans(nil)
	if len(links)+len(forwards)+len(files)+len(consoles)+len(guests) > 0 || err != nil {
		t.Errorf("left behind: links %v, forwards %v, files %v (%v), consoles %v, guests %v",
			links, forwards, files, err, consoles, guests)
	}
	if held, err := w.memories.Held(); err != nil || len(held) > 0 {
		t.Errorf("left behind: memory of %v, %v", held, err)
	}
	machines, err := w.driver.List(context.Background(), "/")
	if err != nil || len(machines) > 0 {
		t.Errorf("left behind: machines %v, %v", machines, err)
	}
}

// faultyStore is the real store, but for calls that are told to fail.
type faultyStore struct {
	*store.Store
	calls *fake.Calls
}

func (s faultyStore) UpdateVM(ctx context.Context, id string, change func(*vm.VM)) (vm.VM, error) {
	if err := s.calls.Begin("UpdateVM"); err != nil {
		return vm.VM{}, err
	}
	return s.Store.UpdateVM(ctx, id, change)
}

// CreateVM can fail after it has stored the VM, as if the connection broke.
func (s faultyStore) CreateVM(ctx context.Context, v vm.VM, want network.Request, pools network.Pools, limit vm.Capacity) (vm.VM, error) {
	stored, err := s.Store.CreateVM(ctx, v, want, pools, limit)
	return stored, errors.Join(err, s.calls.Begin("VMCreated"))
}

func (s faultyStore) AppendEvents(ctx context.Context, events ...event.Event) error {
	if err := s.calls.Begin("AppendEvents"); err != nil {
		return err
	}
	return s.Store.AppendEvents(ctx, events...)
}

func (s faultyStore) DeleteVM(ctx context.Context, id string) error {
	if err := s.calls.Begin("DeleteVM"); err != nil {
		return err
	}
	return s.Store.DeleteVM(ctx, id)
}

func (s faultyStore) AllVMs(ctx context.Context) ([]vm.VM, error) {
	if err := s.calls.Begin("AllVMs"); err != nil {
		return nil, err
	}
	return s.Store.AllVMs(ctx)
}

func (s faultyStore) LeaseVM(ctx context.Context, id string, pools network.Pools, limit vm.Capacity) (vm.VM, error) {
	if err := s.calls.Begin("LeaseVM"); err != nil {
		return vm.VM{}, err
	}
	return s.Store.LeaseVM(ctx, id, pools, limit)
}

type images struct{ w *world }

func (i images) Image(ctx context.Context, scope access.Scope, id string) (image.Image, error) {
	return i.w.store.Image(ctx, scope, id)
}

func (i images) Unchanged(boot image.Boot) bool {
	return rootfs.Unchanged(boot.Kernel) && rootfs.Unchanged(boot.Rootfs)
}

func (i images) Initramfs(context.Context, image.Boot) (string, error) {
	return cmp.Or(i.w.initramfs, "/initramfs"), i.w.calls.Begin("Initramfs")
}

type templates struct{ w *world }

func (t templates) Template(_ context.Context, _ access.Scope, id string) (template.Template, error) {
	if tpl, ok := t.w.templates[id]; ok {
		return tpl, nil
	}
	return template.Template{}, errors.New("no such template here")
}

// faultyMemories is the real keeper in an ordinary directory, but for calls that
// are told to fail.
type faultyMemories struct {
	*memory.Keeper
	w *world
}

func (m faultyMemories) Make(id string, mib, uid int) error {
	if err := m.w.calls.Begin("Make"); err != nil {
		return err
	}
	return m.Keeper.Make(id, mib, uid)
}

func (m faultyMemories) Prepare(id string, bytes int64) error {
	m.w.mu.Lock()
	m.w.prepared = bytes
	m.w.mu.Unlock()
	return errors.Join(m.Keeper.Prepare(id, bytes), m.w.calls.Begin("Prepare"))
}

func (m faultyMemories) CanHold(id string, bytes int64) error {
	if err := m.w.calls.Begin("CanHold"); err != nil {
		return err
	}
	return m.Keeper.CanHold(id, bytes)
}

func (m faultyMemories) Persist(ctx context.Context, id string) (int64, error) {
	if hold := m.w.holdPersist; hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	if err := m.w.calls.Begin("Persist"); err != nil {
		return 0, err
	}
	return m.Keeper.Persist(ctx, id)
}

func (m faultyMemories) Recall(ctx context.Context, id string, durable bool, uid int) error {
	if err := m.w.calls.Begin("Recall"); err != nil {
		return err
	}
	return m.Keeper.Recall(ctx, id, durable, uid)
}

// faultySnapshots is real, but for calls that are told to fail.
type faultySnapshots struct {
	*snapshotfiles.Files
	calls *fake.Calls
}

func (s faultySnapshots) Capture(ctx context.Context, id string, from snapshot.Parts) error {
	return errors.Join(s.Files.Capture(ctx, id, from), s.calls.Begin("Capture"))
}

func (s faultySnapshots) CaptureEphemeral(ctx context.Context, id string, from snapshot.Parts) error {
	return errors.Join(s.Files.CaptureEphemeral(ctx, id, from), s.calls.Begin("CaptureEphemeral"))
}

func (s faultySnapshots) Base(ctx context.Context, id string) (*os.File, error) {
	if err := s.calls.Begin("Base"); err != nil {
		return nil, err
	}
	return s.Files.Base(ctx, id)
}

type host struct{ w *world }

func (host) CPUs() int             { return 4 }
func (host) IsFull(err error) bool { return errors.Is(err, syscall.ENOSPC) }
func (h host) MemMiB() int64       { return h.w.memMiB }
func (h host) BootID() string {
	id, err := jail.BootID()
	if err != nil {
		panic(err)
	}
	return cmp.Or(h.w.bootID, id)
}

func (h host) DiskMiB() (int64, error) {
	if h.w.diskMiB != nil {
		return h.w.diskMiB()
	}
	return 1 << 20, nil
}

// Stop stops a VM with the configured timeout.
func (w *world) Stop(ctx context.Context, scope access.Scope, id string) (vm.VM, error) {
	return w.Service.Stop(ctx, scope, id, nil)
}
