package lab

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/crypto/ssh"

	"github.com/hatchvm/hatch/test/sandbox"
)

// The releases of Debian that a host can run.
const (
	Debian12 = "bookworm"
	Debian13 = "trixie"
)

// packages of the host: what the product needs, and what its users have beside it.
var packages = []string{
	"systemd-sysv", "udev", "dbus", "openssh-server", "kmod", "procps", "curl", "ca-certificates",
	"qemu-system-x86", "nftables", "iproute2", "e2fsprogs", "mmdebstrap", "squashfs-tools", "openssh-client",
	"xfsprogs", "btrfs-progs", "python3-minimal", "apparmor", "firewalld", "ufw", "iptables", "docker.io",
}

// customize runs on the installed system before it is packed.
//
//go:embed customize.sh
var customize string

// diskSize is of the host's root disk, which is sparse.
const diskSize = 8 << 30

// The names of an image's files.
const (
	diskFile    = "root.ext4"
	kernelFile  = "vmlinuz"
	initrdFile  = "initrd"
	keyFile     = "id_ed25519"
	hostKeyFile = "ssh_host_ed25519_key.pub"
)

// Image is a host that can be booted.
type Image struct {
	dir string // with the files above
}

// BuildImage makes the disk of a host that runs the release of Debian below dir, or
// takes it from there if it was made of the same things before. The kernel and its
// modules are those of scripts/test-assets in the directory assets.
func BuildImage(ctx context.Context, release, dir, assets string) (*Image, error) {
	version, err := os.ReadFile(filepath.Join(assets, "version"))
	if err != nil {
		return nil, fmt.Errorf("cannot find the host's kernel; fetch it with make test-assets: %w", err)
	}
	parts := strings.Join(append([]string{release, customize, initScript, string(version)}, packages...), "\n")
	sum := sha256.Sum256([]byte(parts))
	im := &Image{dir: filepath.Join(dir, "host-"+hex.EncodeToString(sum[:6]))}
	if _, err := os.Stat(im.dir); err == nil {
		return im, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	tmp, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := build(ctx, release, tmp, assets, strings.TrimSpace(string(version))); err != nil {
		return nil, fmt.Errorf("cannot build the host's image: %w", err)
	}
	return im, os.Rename(tmp, im.dir)
}

// build fills a directory with the files of an image.
func build(ctx context.Context, release, dir, assets, version string) error {
	modules, err := filepath.EvalSymlinks(filepath.Join(assets, "modules"))
	if err != nil {
		return err
	}
	root, hook := filepath.Join(dir, "root"), filepath.Join(dir, "customize.sh")
	if err := errors.Join(makeKey(dir), os.WriteFile(hook, []byte(customize), 0o700)); err != nil {
		return err
	}
	args := append(slim("minbase"), "--include="+strings.Join(packages, ","), "--customize-hook="+hook, release, root)
	if err := run(ctx, "mmdebstrap", args...); err != nil {
		return err
	}
	if err := run(ctx, "install", "-d", filepath.Join(root, "lib/modules")); err != nil {
		return err
	}
	if err := run(ctx, "cp", "--archive", modules, filepath.Join(root, "lib/modules", version)); err != nil {
		return err
	}
	if err := run(ctx, "cp", filepath.Join(root, "etc/ssh", hostKeyFile), filepath.Join(assets, kernelFile), dir); err != nil {
		return err
	}
	if err := makeDisk(ctx, filepath.Join(dir, diskFile), diskSize, "-d", root); err != nil {
		return err
	}
	return errors.Join(makeInitrd(filepath.Join(dir, initrdFile), modules), os.RemoveAll(root), os.Remove(hook))
}

// makeDisk makes a sparse file with an ext4 file system; more are options of mke2fs.
func makeDisk(ctx context.Context, path string, size int64, more ...string) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return err
	}
	return run(ctx, "mke2fs", append(append([]string{"-q", "-F", "-t", "ext4"}, more...), path)...)
}

// makeKey makes the key that logs in as the host's root.
func makeKey(dir string) error {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	block, err := ssh.MarshalPrivateKey(private, "lab")
	if err != nil {
		return err
	}
	line, err := ssh.NewPublicKey(public)
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, keyFile), pem.EncodeToMemory(block), 0o600),
		os.WriteFile(filepath.Join(dir, keyFile+".pub"), ssh.MarshalAuthorizedKey(line), 0o644),
	)
}

// run runs a program with the sandbox's way to Debian's mirrors. An error quotes its
// output.
func run(ctx context.Context, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "http_proxy=http://"+sandbox.ProxyAddr, "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // its children too
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, bytes.TrimSpace(out[max(0, len(out)-2000):]))
	}
	return nil
}
