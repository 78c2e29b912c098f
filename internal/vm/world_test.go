package vm_test

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/hatchvm/hatch/internal/access"
	"github.com/hatchvm/hatch/internal/errs"
	"github.com/hatchvm/hatch/internal/host/disk"
	"github.com/hatchvm/hatch/internal/host/memory"
	"github.com/hatchvm/hatch/internal/host/page"
	snapshotfiles "github.com/hatchvm/hatch/internal/host/snapshot"
	"github.com/hatchvm/hatch/internal/image"
	"github.com/hatchvm/hatch/internal/network"
	"github.com/hatchvm/hatch/internal/snapshot"
	"github.com/hatchvm/hatch/internal/store"
	"github.com/hatchvm/hatch/internal/template"
	"github.com/hatchvm/hatch/internal/vm"
	"github.com/hatchvm/hatch/internal/vmm"
	"github.com/hatchvm/hatch/internal/vmm/vmmtest"
)

const owner = access.AdminID

// world is a service with a real store and a host that only keeps books: what
// is attached, open and on disk, and which call shall fail next.
type world struct {
	*vm.Service
	store      *store.Store
	driver     *vmmtest.Fake
	driverName string // by which the service knows it
	version    string // of its VMM; "": the fake's own
	initramfs  string // that guests boot; "": /initramfs

	image       image.Image
	lacks       bool   // the driver can do nothing that a driver may lack
	adoptFaults int    // guarded by mu: how many adoptions fail from now on
	root        string // of the VMs' directories
	memories    *memory.Keeper
	memMiB      int64                 // that VMs may take
	diskMiB     func() (int64, error) // likewise; nil: much
	snapshots   *snapshot.Service

	snapshotFiles *snapshotfiles.Files
	warm          vm.Warm       // nil: every VM boots
	holdPersist   chan struct{} // memory becomes durable once it is closed; nil: at once

	// What guests' agents do, and who answers at guests' addresses; nil: nothing.
	usage       func(context.Context) (vm.GuestUsage, error)
	guestMemory vmm.GuestMemory // what all guests' kernels tell
	guestDial   func(ctx context.Context, port int) (net.Conn, error)
	dial        func(ctx context.Context, to netip.AddrPort) (net.Conn, error)

	second *muteDriver // another driver, "mute"; nil: there is one only

	mu       sync.Mutex
	wakes    int              // of the driver
	fail     map[string]error // by call; taken at the first use
	updating func()           // is called before a VM's row is updated; nil: nothing
	forking  func()           // is called once a guest was copied for a fork; nil: nothing
	waking   func()           // is called before a machine is woken; nil: nothing
	links    map[string]vm.Link
	forwards map[int]string
	files    map[string]bool
	consoles map[string]bool
	guests   map[string]*bookGuest
	clocks   []string // guests that were told the time
	prepared int64    // bytes of memory that there was to be room for, when it was last asked
}

// newWorld makes a world with its own store; closed at the end of the test.
func newWorld(t *testing.T) *world {
	t.Helper()
	st, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "hatch.db"))
	if err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{owner, access.SystemID} {
		if err := st.InsertAccount(t.Context(), access.Account{ID: id, Name: id, CreatedAt: time.Now()}); err != nil {
			t.Fatal(err)
		}
	}
	w := &world{store: st, driver: vmmtest.NewFake(), driverName: "fake", root: t.TempDir(), memMiB: 16 << 10}
	if w.memories, err = memory.In(t.TempDir(), func(id string) string { return filepath.Join(w.root, id) }); err != nil {
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
	file, err := image.Stat(path)
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
	faults := w.adoptFaults
	if err := w.Adopt(t.Context(), "/"); err != nil && faults == 0 {
		t.Fatal(err)
	}
}

// open makes a service over the world that has adopted nothing yet.
func (w *world) open(t *testing.T) {
	t.Helper()
	w.fail = map[string]error{}
	w.links, w.forwards = map[string]vm.Link{}, map[int]string{}
	w.consoles, w.guests = map[string]bool{}, map[string]*bookGuest{}
	if w.files == nil {
		w.files = map[string]bool{}
	}
	net, err := network.New("hatch0", "172.16.0.1/24")
	if err != nil {
		t.Fatal(err)
	}
	w.snapshots = snapshot.New(w.store, w.snapshotFiles, snapshot.Limits{PerVM: 10}, slog.New(slog.DiscardHandler))
	if err := w.snapshots.Reconcile(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.Service = vm.New(vm.Deps{
		Store: bookStore{w.store, w}, Images: bookImages{w}, Templates: noTemplates{}, Network: bookNetwork{w},
		Forwards: bookForwards{w}, Files: bookFiles{disk.New(w.root, ""), w}, Memories: bookMemories{w.memories, w}, Guests: bookGuests{w}, Consoles: bookConsoles{w},
		Snapshots: w.snapshots, SnapshotFiles: bookSnapshots{w.snapshotFiles, w}, Warm: w.warm,
		Host: bookHost{w}, Drivers: w.drivers(), Log: slog.New(slog.DiscardHandler),
		PageStatus: page.Status, Dial: w.dial,
	}, vm.Settings{
		DefaultDriver: w.driverName, VCPUs: 1, MemMiB: 512, DiskMiB: 1024, BootArgs: "console=ttyS0",
		StopTimeout: 200 * time.Millisecond,
		Pools: vm.Pools{
			Network: net, SSHMin: 16000, SSHMax: 16099, UIDMin: 900000, UIDMax: 900099,
			TapPrefix: "htap", IdempotencyReach: time.Hour,
		},
	})
}

func (w *world) drivers() map[string]vmm.Driver {
	all := map[string]vmm.Driver{w.driverName: deafDriver{w.driver, w}}
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

// failNext makes the next call of that name fail.
func (w *world) failNext(call string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fail[call] = errors.New("injected: " + call)
}

func (w *world) fault(call string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.fail[call]
	delete(w.fail, call)
	return err
}

// requireNothing fails the test when anything of the host is still in use.
func (w *world) requireNothing(t *testing.T) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.links)+len(w.forwards)+len(w.files)+len(w.consoles)+len(w.guests) > 0 {
		t.Errorf("left behind: links %v, forwards %v, files %v, consoles %v, guests %v",
			w.links, w.forwards, w.files, w.consoles, w.guests)
	}
	if held, err := w.memories.Held(); err != nil || len(held) > 0 {
		t.Errorf("left behind: memory of %v, %v", held, err)
	}
	machines, err := w.driver.List(context.Background(), "/")
	if err != nil || len(machines) > 0 {
		t.Errorf("left behind: machines %v, %v", machines, err)
	}
}

// bookStore is the real store, but for updates that are told to fail.
type bookStore struct {
	*store.Store
	w *world
}

// onUpdate has f called before each update of a VM's row.
func (w *world) onUpdate(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.updating = f
}

func (b bookStore) UpdateVM(ctx context.Context, id string, change func(*vm.VM)) (vm.VM, error) {
	b.w.mu.Lock()
	f := b.w.updating
	b.w.mu.Unlock()
	if f != nil {
		f()
	}
	if err := b.w.fault("UpdateVM"); err != nil {
		return vm.VM{}, err
	}
	return b.Store.UpdateVM(ctx, id, change)
}

func (b bookStore) LeaseVM(ctx context.Context, id string, pools vm.Pools, limit vm.Capacity) (vm.VM, error) {
	if err := b.w.fault("LeaseVM"); err != nil {
		return vm.VM{}, err
	}
	return b.Store.LeaseVM(ctx, id, pools, limit)
}

// deafDriver is the fake driver, but for calls that are told to fail.
type deafDriver struct {
	*vmmtest.Fake
	w *world
}

func (d deafDriver) Info() vmm.Info {
	info := d.Fake.Info()
	if d.w.version != "" {
		info.Version = d.w.version
	}
	if d.w.lacks {
		info.Capabilities = vmm.Capabilities{EvenVCPUs: true, MaxVCPUs: 2}
	}
	return info
}

// muteDriver is a fake driver that cannot list its machines while fault is set.
type muteDriver struct {
	*vmmtest.Fake
	fault error
}

func (d *muteDriver) List(ctx context.Context, root string) ([]vmm.Handle, error) {
	if d.fault != nil {
		return nil, d.fault
	}
	return d.Fake.List(ctx, root)
}

func (d deafDriver) Check(spec vmm.Spec, dir string) error {
	if err := d.w.fault("Check"); err != nil {
		return err
	}
	return d.Fake.Check(spec, dir)
}

func (d deafDriver) Adopt(ctx context.Context, h vmm.Handle) (vmm.Machine, error) {
	d.w.mu.Lock()
	fail := d.w.adoptFaults > 0
	if fail {
		d.w.adoptFaults--
	}
	d.w.mu.Unlock()
	if fail {
		return nil, errors.New("injected: the VMM does not answer")
	}
	m, err := d.Fake.Adopt(ctx, h)
	return d.deaf(m, err)
}

func (d deafDriver) Start(ctx context.Context, spec vmm.Spec) (vmm.Machine, error) {
	m, err := d.Fake.Start(ctx, spec)
	return d.deaf(m, err)
}

func (d deafDriver) Wake(ctx context.Context, spec vmm.Spec, dir string) (vmm.Machine, error) {
	d.w.mu.Lock()
	d.w.wakes++
	f := d.w.waking
	d.w.mu.Unlock()
	if f != nil {
		f()
	}
	if err := d.w.fault("Wake"); err != nil {
		return nil, err
	}
	m, err := d.Fake.Wake(ctx, spec, dir)
	return d.deaf(m, err)
}

func (d deafDriver) deaf(m vmm.Machine, err error) (vmm.Machine, error) {
	if err != nil {
		return nil, err
	}
	return deafMachine{m, d.w}, nil
}

// deafMachine is a machine, but for calls that are told to fail.
type deafMachine struct {
	vmm.Machine
	w *world
}

func (m deafMachine) Stats(ctx context.Context) (vmm.Stats, error) {
	st, err := m.Machine.Stats(ctx)
	st.GuestMemory = m.w.guestMemory
	return st, err
}

func (m deafMachine) Save(ctx context.Context, spec vmm.Spec, dir string) error {
	if err := m.w.fault("Save"); err != nil {
		return err
	}
	return m.Machine.Save(ctx, spec, dir)
}

func (m deafMachine) Resume(ctx context.Context) error {
	if err := m.w.fault("Resume"); err != nil {
		return err
	}
	return m.Machine.Resume(ctx)
}

func (m deafMachine) Kill(ctx context.Context) error {
	if err := m.w.fault("Kill"); err != nil {
		return err
	}
	return m.Machine.Kill(ctx)
}

type bookImages struct{ w *world }

func (b bookImages) Image(ctx context.Context, owner, id string) (image.Image, error) {
	return b.w.store.Image(ctx, owner, id)
}

func (b bookImages) Initramfs(context.Context, image.Boot) (string, error) {
	return cmp.Or(b.w.initramfs, "/initramfs"), b.w.fault("Initramfs")
}

type noTemplates struct{}

func (noTemplates) Template(context.Context, string, string) (template.Template, error) {
	return template.Template{}, errors.New("no templates here")
}

type bookNetwork struct{ w *world }

func (b bookNetwork) Attach(ctx context.Context, l vm.Link) (*os.File, error) {
	return nil, b.Reattach(ctx, l)
}

func (b bookNetwork) Reattach(_ context.Context, l vm.Link) error {
	if err := b.w.fault("Attach"); err != nil {
		return err
	}
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	b.w.links[l.VMID] = l
	return nil
}

func (b bookNetwork) Detach(_ context.Context, l vm.Link) error {
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	delete(b.w.links, l.VMID)
	return nil
}

func (b bookNetwork) Traffic(_ context.Context, l vm.Link) (vm.Traffic, error) {
	if err := b.w.fault("Traffic"); err != nil {
		return vm.Traffic{}, err
	}
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	if _, attached := b.w.links[l.VMID]; !attached {
		return vm.Traffic{}, errs.New(errs.NotFound, "tap_missing", "no TAP")
	}
	return vm.Traffic{RxBytes: 1, TxBytes: 2, RxPackets: 3, TxPackets: 4}, nil
}

type bookForwards struct{ w *world }

func (b bookForwards) Open(vmID string, port int, _ netip.AddrPort) error {
	if err := b.w.fault("Open"); err != nil {
		return err
	}
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	b.w.forwards[port] = vmID
	return nil
}

func (b bookForwards) Close(port int) {
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	delete(b.w.forwards, port)
}

// bookFiles is real where directories are enough; a disk is a few bytes.
type bookFiles struct {
	*disk.Files
	w *world
}

func (b bookFiles) Provision(ctx context.Context, v vm.VM) error {
	return b.ProvisionFrom(ctx, v, func(_ context.Context, path string) error {
		return os.WriteFile(path, []byte("empty"), 0o600)
	})
}

func (b bookFiles) ProvisionFrom(ctx context.Context, v vm.VM, fill func(context.Context, string) error) error {
	b.w.mu.Lock()
	b.w.files[v.ID] = true
	b.w.mu.Unlock()
	if err := os.MkdirAll(b.Dir(v.ID), 0o700); err != nil {
		return err
	}
	return errors.Join(fill(ctx, b.Disk(v.ID)), b.w.fault("Provision"))
}

func (b bookFiles) Stage(ctx context.Context, vmID string, fill func(disk, saved string) error) error {
	return errors.Join(b.Files.Stage(ctx, vmID, fill), b.w.fault("Stage"))
}

func (b bookFiles) Settle(vmID string, takeIn func(vmID, saved string) error) error {
	if err := b.w.fault("Settle"); err != nil {
		return err
	}
	return b.Files.Settle(vmID, takeIn)
}

func (b bookFiles) Seed(context.Context, vm.VM) error { return b.w.fault("Seed") }

func (b bookFiles) Disks(_ vm.VM, own string) ([]vmm.Disk, error) {
	return []vmm.Disk{{Serial: "hatch-disk", Path: own}}, b.w.fault("Disks")
}

func (b bookFiles) Remove(vmID string) error {
	if err := b.w.fault("Remove"); err != nil {
		return err
	}
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	delete(b.w.files, vmID)
	return os.RemoveAll(b.Dir(vmID))
}

func (b bookFiles) SetAside(vmID string) error { return b.Remove(vmID) }

func (bookFiles) Allocated(string) (int64, error) { return 4096, nil }

func (b bookFiles) Orphans(known map[string]bool) ([]string, error) {
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	var orphans []string
	for id := range b.w.files {
		if !known[id] {
			orphans = append(orphans, id)
		}
	}
	return orphans, nil
}

// bookMemories is the real keeper in an ordinary directory, but for calls that
// are told to fail.
type bookMemories struct {
	*memory.Keeper
	w *world
}

func (b bookMemories) Make(id string, mib, uid int) error {
	if err := b.w.fault("Make"); err != nil {
		return err
	}
	return b.Keeper.Make(id, mib, uid)
}

func (b bookMemories) Prepare(id string, bytes int64) error {
	b.w.mu.Lock()
	b.w.prepared = bytes
	b.w.mu.Unlock()
	return errors.Join(b.Keeper.Prepare(id, bytes), b.w.fault("Prepare"))
}

func (b bookMemories) CanHold(id string, bytes int64) error {
	if err := b.w.fault("CanHold"); err != nil {
		return err
	}
	return b.Keeper.CanHold(id, bytes)
}

func (b bookMemories) Persist(ctx context.Context, id string) (int64, error) {
	if hold := b.w.holdPersist; hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return b.Keeper.Persist(ctx, id)
}

func (b bookMemories) Recall(ctx context.Context, id string, durable bool, uid int) error {
	if err := b.w.fault("Recall"); err != nil {
		return err
	}
	return b.Keeper.Recall(ctx, id, durable, uid)
}

// bookSnapshots is real, but for calls that are told to fail.
type bookSnapshots struct {
	*snapshotfiles.Files
	w *world
}

func (b bookSnapshots) Capture(ctx context.Context, id string, from snapshot.Parts) error {
	return errors.Join(b.Files.Capture(ctx, id, from), b.w.fault("Capture"))
}

func (b bookSnapshots) CapturePassing(ctx context.Context, id string, from snapshot.Parts) error {
	err := b.Files.CapturePassing(ctx, id, from)
	b.w.mu.Lock()
	f := b.w.forking
	b.w.mu.Unlock()
	if f != nil {
		f()
	}
	return err
}

func (b bookSnapshots) Base(ctx context.Context, id string) (*os.File, error) {
	if err := b.w.fault("Base"); err != nil {
		return nil, err
	}
	return b.Files.Base(ctx, id)
}

type bookGuests struct{ w *world }

func (b bookGuests) Rejoin(vmID string, dial func(context.Context) (net.Conn, error), observe func(*vm.GuestReport)) vm.Guest {
	g := b.Connect(vmID, dial, observe)
	g.(*bookGuest).slept = true
	return g
}

func (b bookGuests) Recast(vmID string, dial func(context.Context) (net.Conn, error), observe func(*vm.GuestReport), as vm.Identity) vm.Guest {
	g := b.Connect(vmID, dial, observe)
	g.(*bookGuest).slept, g.(*bookGuest).as = true, &as
	return g
}

func (b bookGuests) Connect(vmID string, _ func(context.Context) (net.Conn, error), observe func(*vm.GuestReport)) vm.Guest {
	g := &bookGuest{w: b.w, id: vmID, observe: observe}
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	b.w.guests[vmID] = g
	return g
}

type bookGuest struct {
	w       *world
	id      string
	observe func(*vm.GuestReport)
	slept   bool         // it was told so
	as      *vm.Identity // it was told to be that
}

func (g *bookGuest) Confirmed(context.Context) error { return g.w.fault("Recast") }

func (g *bookGuest) SetClock(context.Context) error {
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	g.w.clocks = append(g.w.clocks, g.id)
	return nil
}

func (g *bookGuest) Shutdown(context.Context, bool) error { return errors.New("no agent here") }

func (g *bookGuest) Usage(ctx context.Context) (vm.GuestUsage, error) {
	if usage := g.w.usage; usage != nil {
		return usage(ctx)
	}
	return vm.GuestUsage{}, errors.New("no agent here")
}

func (g *bookGuest) Dial(ctx context.Context, port int) (net.Conn, error) {
	if dial := g.w.guestDial; dial != nil {
		return dial(ctx, port)
	}
	return nil, errors.New("no agent here")
}

func (g *bookGuest) Close() error {
	g.w.mu.Lock()
	defer g.w.mu.Unlock()
	delete(g.w.guests, g.id)
	return nil
}

type bookConsoles struct{ w *world }

func (b bookConsoles) Open(vmID string, _ func(context.Context) (net.Conn, error)) error {
	if err := b.w.fault("Console"); err != nil {
		return err
	}
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	b.w.consoles[vmID] = true
	return nil
}

func (b bookConsoles) Close(vmID string) {
	b.w.mu.Lock()
	defer b.w.mu.Unlock()
	delete(b.w.consoles, vmID)
}

func (bookConsoles) Log(context.Context, string, int, bool, io.Writer) error { return nil }

func (bookConsoles) VMMLog(context.Context, string, int, bool, io.Writer) error { return nil }

func (bookConsoles) Attach(context.Context, string, bool) (io.ReadWriteCloser, error) {
	return silentConsole{}, nil
}

// silentConsole says nothing.
type silentConsole struct{}

func (silentConsole) Read([]byte) (int, error)    { return 0, io.EOF }
func (silentConsole) Write(p []byte) (int, error) { return len(p), nil }
func (silentConsole) Close() error                { return nil }

type bookHost struct{ w *world }

func (bookHost) CPUs() int       { return 4 }
func (b bookHost) MemMiB() int64 { return b.w.memMiB }
func (b bookHost) DiskMiB() (int64, error) {
	if b.w.diskMiB != nil {
		return b.w.diskMiB()
	}
	return 1 << 20, nil
}
