package recipe

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"
)

// apt runs apt-get with its own state, so that the host's is neither used nor
// changed. Settings such as proxies come from the host's configuration.
type apt struct {
	dir string
	job *job
}

// newApt writes the sources and fetches the package lists.
func (j *job) newApt(ctx context.Context) (*apt, error) {
	a := &apt{dir: filepath.Join(j.tmp, "apt"), job: j}
	lines, err := thisHost.debianLines(j.mirrors)
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{"sources.d", "state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, dir), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(a.sourcesFile(), []byte(lines), 0o644); err != nil {
		return nil, err
	}
	j.report("reading Debian's package lists")
	return a, a.run(ctx, "", "-o", "APT::Update::Error-Mode=any", "update")
}

// sourcesFile is the path of the package sources, one per line.
func (a *apt) sourcesFile() string { return filepath.Join(a.dir, "sources.d", "debian.list") }

// options leaves out the host's pinning, which is for the host's own release.
func (a *apt) options() []string {
	return []string{
		"-qq", "-o", "Dir::Etc::sourcelist=/dev/null", "-o", "Dir::Etc::sourceparts=" + filepath.Join(a.dir, "sources.d"),
		"-o", "Dir::State=" + filepath.Join(a.dir, "state"), "-o", "Dir::State::status=/dev/null",
		"-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"), "-o", "APT::Sandbox::User=root",
		"-o", "Dir::Etc::preferences=/dev/null", "-o", "Dir::Etc::preferencesparts=/dev/null", "-o", "APT::Default-Release=",
	}
}

func (a *apt) run(ctx context.Context, dir string, args ...string) error {
	return a.job.run(ctx, dir, "apt-get", append(a.options(), args...)...)
}

// download fetches one package and unpacks it below to, without installing it.
func (a *apt) download(ctx context.Context, pkg, to string) error {
	dir, err := os.MkdirTemp(a.job.tmp, "deb-")
	if err != nil {
		return err
	}
	if err := a.run(ctx, dir, "download", pkg); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("cannot find the package %s that was downloaded: %v, %w", pkg, debs, err)
	}
	return a.job.run(ctx, dir, "dpkg-deb", "-x", debs[0], to)
}

// depends returns the package with this prefix that a meta package depends on.
func (a *apt) depends(ctx context.Context, pkg, prefix string) (string, error) {
	args := append(a.options(), "depends", pkg)
	cmd := exec.CommandContext(ctx, "apt-cache", args[1:]...) // apt-cache has no -qq
	cmd.Env = environment()
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("cannot look up the package %s: %w", pkg, err)
	}
	var found []string
	for line := range strings.SplitSeq(string(out), "\n") {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: "); ok && strings.HasPrefix(name, prefix) {
			found = append(found, name)
		}
	}
	if len(found) == 0 {
		return "", fmt.Errorf("cannot find the kernel's package: %s depends on none", pkg)
	}
	sort.Strings(found)
	return found[len(found)-1], nil
}

// kernel is Debian's cloud kernel, unpacked.
type kernel struct {
	version string // as uname -r
	image   string // bzImage
	modules string // content of /lib/modules/VERSION
	tree    string // the whole package
	apt     *apt
}

// fetchKernel downloads the kernel and indexes its modules.
func (j *job) fetchKernel(ctx context.Context) (kernel, error) {
	a, err := j.newApt(ctx)
	if err != nil {
		return kernel{}, err
	}
	pkg, err := a.depends(ctx, "linux-image-cloud-amd64", "linux-image-")
	if err != nil {
		return kernel{}, err
	}
	j.report("fetching the kernel (%s)", pkg)
	k := kernel{version: strings.TrimPrefix(pkg, "linux-image-"), tree: filepath.Join(j.tmp, "kernel"), apt: a}
	if err := a.download(ctx, pkg, k.tree); err != nil {
		return kernel{}, err
	}
	k.image = filepath.Join(k.tree, "boot", "vmlinuz-"+k.version)
	k.modules = filepath.Join(k.tree, "lib/modules", k.version)
	return k, j.run(ctx, "", "depmod", "-b", k.tree, k.version)
}

// run runs a program and copies its output to progress. An error quotes the end of
// the output.
func (j *job) run(ctx context.Context, dir, program string, args ...string) error {
	var last tail
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = dir
	cmd.Env = append(environment(), "TMPDIR="+j.tmp, fmt.Sprintf("SOURCE_DATE_EPOCH=%d", epoch))
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // its children too
	cmd.WaitDelay = 5 * time.Second
	cmd.Stdout = io.MultiWriter(j.progress, &last)
	cmd.Stderr = cmd.Stdout
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("cannot build the image: %s: %w: %s", program, err, bytes.TrimSpace(last.text))
	}
	return nil
}

// environment is the environment of programs, without hatchd's secrets: packages
// run scripts.
func environment() []string {
	env := []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root",
		"LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive",
	}
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"} {
		if value, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+value)
		}
	}
	return env
}

// tail keeps the last bytes written to it.
type tail struct{ text []byte }

func (t *tail) Write(p []byte) (int, error) {
	const size = 2048
	t.text = append(t.text, p...)
	t.text = t.text[max(0, len(t.text)-size):]
	return len(p), nil
}
