package lab

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/hatchvm/hatch/client"
)

// serveTimeout bounds a start of hatchd: an emulated host needs up to half a minute.
const serveTimeout = 2 * time.Minute

// PackCargo puts into dir what users would fetch: the checkout's programs, scripts and
// unit files as they are after make build, a Firecracker, and the images that are kept
// in images. The tests' assets, their suite and the how-tos that it reads come with them.
func PackCargo(ctx context.Context, repository, images, dir string) error {
	for _, name := range []string{"bin", "scripts", "packaging", "go.mod", "docs/how-to", ".cache/test"} {
		if err := pack(ctx, filepath.Join(repository, name), filepath.Join(dir, "hatch", name)); err != nil {
			return err
		}
	}
	if err := pack(ctx, images, filepath.Join(dir, "images")); err != nil {
		return err
	}
	suite := filepath.Join(dir, "hatch/test/e2e")
	if err := os.MkdirAll(suite, 0o755); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"test", "-c", "-tags", "system", "-o", filepath.Join(suite, "e2e.test"), "./test/e2e"},
		{"build", "-o", filepath.Join(suite, "guestserver"), "./test/guestserver"}, // there is no Go on the host
	} {
		build := exec.CommandContext(ctx, "go", args...)
		build.Dir, build.Env = repository, append(os.Environ(), "CGO_ENABLED=0") // the host may have an older libc
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("cannot build the suite: %w: %s", err, out)
		}
	}
	return nil
}

// pack copies a file or a directory.
func pack(ctx context.Context, from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return run(ctx, "cp", "--archive", from, to)
}

// Install installs Hatch as its users do, with the default configuration, and starts
// it. The data directory is on the host's second disk, with the given file system.
func (h *Host) Install(ctx context.Context, fileSystem string) error {
	for _, command := range []string{
		"mount -o ro LABEL=cargo /media/cargo",
		"mkfs." + fileSystem + " -q /dev/vdc",
		"mkdir -p /var/lib/hatch && echo /dev/vdc /var/lib/hatch " + fileSystem + " defaults 0 0 >>/etc/fstab",
		"systemctl daemon-reload && mount /var/lib/hatch && chmod 0700 /var/lib/hatch",
		"cp --archive /media/cargo/images /var/lib/hatch/images",
		"install -t /usr/local/bin /media/cargo/hatch/.cache/test/firecracker/firecracker /media/cargo/hatch/.cache/test/firecracker/jailer",
		"/media/cargo/hatch/scripts/install",
		"systemctl enable --now hatchd",
	} {
		if _, err := h.Run(ctx, command, nil); err != nil {
			return fmt.Errorf("cannot install Hatch: %w", err)
		}
	}
	return h.AwaitHatch(ctx)
}

// AwaitHatch waits until hatchd serves.
func (h *Host) AwaitHatch(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, serveTimeout)
	defer cancel()
	if _, err := h.Run(ctx, "until curl -so /dev/null "+hatchURL+"/healthz; do sleep 0.3; done", nil); err != nil {
		log, _ := h.Run(context.WithoutCancel(ctx), "journalctl --no-pager -u hatchd -n 40", nil)
		return fmt.Errorf("hatchd does not serve: %w\n%s", err, log)
	}
	return nil
}

// hatchURL is where hatchd serves by default, as seen from the host.
const hatchURL = "http://127.0.0.1:8080"

func (h *Host) httpClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: h.Dial, DisableKeepAlives: true}}
}

// Client returns a client of the host's hatchd with the admin key. It works until the
// host goes down.
func (h *Host) Client(ctx context.Context) (*client.Client, error) {
	key, err := h.Run(ctx, "cat /var/lib/hatch/admin.key", nil)
	if err != nil {
		return nil, err
	}
	return client.New(hatchURL, strings.TrimSpace(key), client.WithHTTPClient(h.httpClient()))
}
