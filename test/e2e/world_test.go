//go:build system

package e2e

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/client"
	"github.com/hatchvm/hatch/test/sandbox"
)

const (
	readyLimit  = 5 * time.Minute  // a Debian guest on a slow machine, emulated
	buildLimit  = 30 * time.Minute // an image from a slow mirror
	minimalID   = "img_minimal"
	minimalMem  = 96  // MiB
	debianMem   = 512 // MiB
	debianUser  = "debian"
	smallDisk   = 128 // MiB
	normalReply = 15 * time.Second
	stopLimit   = 60 * time.Second
)

// world is what the tests share: one data directory, the hatchd on it, a key
// to log in with, and the guests that several tests use.
type world struct {
	dir      string // of this run: logs and keys
	daemon   *sandbox.Daemon
	driver   []string // environment of hatchd that chooses what runs VMs
	probeID  string   // the image of the probe, where there is one
	client   *client.Client
	internet *internet

	signer    ssh.Signer
	publicKey string // as in authorized_keys
	keyFile   string

	mu     sync.Mutex
	guests map[string]*guest
}

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{dir: t.TempDir(), guests: map[string]*guest{}}
	w.daemon = &sandbox.Daemon{
		Program: filepath.Join(repository(), "bin", "hatchd"),
		DataDir: filepath.Join(repository(), ".cache", "e2e", "data"),
		LogFile: filepath.Join(w.dir, "hatchd.log"), Port: apiPort,
	}
	w.driver = chosenDriver(t)
	if err := w.daemon.Forget(); err != nil {
		t.Fatal(err)
	}
	w.makeKey(t)
	w.internet = openInternet(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the end of hatchd's log:\n%s", sandbox.Tail(w.daemon.LogFile, 80))
		}
	})
	w.startDaemon(t)
	t.Cleanup(func() { w.stopDaemon(t, syscall.SIGTERM) })
	w.buildImages(t)
	return w
}

func (w *world) data(below ...string) string {
	return filepath.Join(append([]string{w.daemon.DataDir}, below...)...)
}

// newKey makes a key to log in with; line is as in authorized_keys.
func newKey(t *testing.T) (private ed25519.PrivateKey, signer ssh.Signer, line string) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if signer, err = ssh.NewSignerFromKey(private); err != nil {
		t.Fatal(err)
	}
	return private, signer, strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey()))) + " e2e"
}

func (w *world) makeKey(t *testing.T) {
	t.Helper()
	var private ed25519.PrivateKey
	private, w.signer, w.publicKey = newKey(t)
	block, err := ssh.MarshalPrivateKey(private, "e2e")
	if err != nil {
		t.Fatal(err)
	}
	w.keyFile = filepath.Join(w.dir, "id_ed25519")
	if err := os.WriteFile(w.keyFile, pem.EncodeToMemory(block), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (w *world) buildImages(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), buildLimit)
	defer cancel()
	for _, recipe := range []string{"minimal", "debian"} {
		began := time.Now()
		build, err := w.client.StartImageBuild(ctx, api.BuildImage{Recipe: recipe})
		if err != nil {
			t.Fatalf("cannot build the %s image: %v", recipe, err)
		}
		text := w.followBuild(ctx, t, build.ID)
		err = sandbox.Poll(normalReply, func() (bool, error) {
			build, err = w.client.GetImageBuild(ctx, build.ID)
			return err == nil && build.State != "running", err
		})
		if err != nil || build.State != "done" {
			t.Fatalf("the %s image is not built: %v, %s: %s\n%s", recipe, err, build.State, build.Error, text)
		}
		t.Logf("image %s: %.1f s, cached %v", build.ImageID, time.Since(began).Seconds(), build.Cached)
	}
}

func (w *world) followBuild(ctx context.Context, t *testing.T, id string) string {
	t.Helper()
	log, err := w.client.ImageBuildLog(ctx, id, true)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	text, err := io.ReadAll(log)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// create makes a VM, which is deleted when the test ends if it is still there.
func (w *world) create(t *testing.T, body api.CreateVM, opts client.CreateOptions) api.VM {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), readyLimit)
	defer cancel()
	v, err := w.client.CreateVM(ctx, body, opts)
	if err != nil {
		t.Fatalf("cannot create a VM: %v", err)
	}
	t.Cleanup(func() { w.cleanUp(t, v.ID) })
	return v
}

func (w *world) cleanUp(t *testing.T, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	if t.Failed() {
		t.Logf("the console of %s:\n%s", id, w.console(ctx, id))
	}
	if err := w.client.DeleteVM(ctx, id); err != nil && !client.IsNotFound(err) {
		t.Errorf("cannot delete %s: %v", id, err)
	}
}

// console returns the last lines of a VM's console.
func (w *world) console(ctx context.Context, id string) string {
	log, err := w.client.VMLogs(ctx, id, client.LogOptions{Tail: 40})
	if err != nil {
		return err.Error()
	}
	defer func() { _ = log.Close() }()
	text, _ := io.ReadAll(log) // what there is
	return string(text)
}

// await waits until a condition of the VM holds.
func (w *world) await(t *testing.T, id, condition string, limit time.Duration) api.VM {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit+normalReply)
	defer cancel()
	v, err := w.client.WaitVM(ctx, id, condition, limit)
	if err != nil {
		now, _ := w.client.GetVM(ctx, id)
		t.Fatalf("%s is not %s: %v\nstate %s (%s), conditions %+v\nconsole:\n%s",
			id, condition, err, now.State, now.StateReason, now.Conditions, w.console(ctx, id))
	}
	return v
}

func (w *world) get(t *testing.T, id string) api.VM {
	t.Helper()
	v, err := w.client.GetVM(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func (w *world) delete(t *testing.T, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), stopLimit)
	defer cancel()
	if err := w.client.DeleteVM(ctx, id); err != nil {
		t.Fatalf("cannot delete %s: %v", id, err)
	}
}

// minimal is a small VM without cloud-init.
func minimal() api.CreateVM {
	return api.CreateVM{ImageID: minimalID, MemMiB: new(minimalMem), DiskMiB: new(smallDisk)}
}

// debian is a VM of the default image that the test's key can log in to.
func (w *world) debian(userData string) api.CreateVM {
	return api.CreateVM{MemMiB: new(debianMem), UserData: &userData, SSHAuthorizedKeys: []string{w.publicKey}}
}
