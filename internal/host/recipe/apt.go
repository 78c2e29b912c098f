package recipe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"github.com/hatchvm/hatch/internal/errs"
)

// suite is the Debian release of the images.
const suite = "bookworm"

// sources returns the host's own entries for Debian's archive, in deb822 form
// or as one-line entries, whichever file they come from. Entries of others,
// whose packages do not belong in an image, are left out.
func sources(aptDir string) (lines, stanzas string, err error) {
	files := []string{filepath.Join(aptDir, "sources.list")}
	for _, pattern := range []string{"*.list", "*.sources"} {
		more, err := filepath.Glob(filepath.Join(aptDir, "sources.list.d", pattern))
		if err != nil {
			return "", "", err
		}
		files = append(files, more...)
	}
	for _, path := range files {
		text, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", "", fmt.Errorf("cannot read the host's package sources: %w", err)
		}
		if strings.HasSuffix(path, ".sources") {
			stanzas += debianStanzas(string(text))
		} else {
			lines += debianLines(string(text))
		}
	}
	if lines == "" && stanzas == "" {
		return "", "", errs.New(errs.Unsupported, "no_package_sources", "cannot build the image: the host has no package source for Debian %s", suite).
			WithHint("name Debian's archive in /etc/apt/sources.list: the suites %s, %s-updates and %s-security", suite, suite, suite)
	}
	return lines, stanzas, nil
}

// debianStanzas keeps the stanzas of Debian's own archive for our release.
func debianStanzas(text string) string {
	var kept strings.Builder
	for _, stanza := range strings.Split(text, "\n\n") {
		fields := map[string]string{}
		for _, line := range strings.Split(stanza, "\n") {
			name, value, ok := strings.Cut(line, ":")
			if ok && !strings.HasPrefix(line, "#") {
				fields[strings.ToLower(name)] = strings.TrimSpace(value)
			}
		}
		if strings.Contains(fields["types"], "deb") && isDebian(fields["uris"]+" ", fields["suites"]) {
			kept.WriteString(strings.TrimSpace(stanza) + "\n\n")
		}
	}
	return kept.String()
}

// debianLines keeps the one-line entries of Debian's own archive for our release.
func debianLines(text string) string {
	var kept strings.Builder
	for _, line := range strings.Split(text, "\n") {
		words := strings.Fields(line)
		if len(words) == 0 || words[0] != "deb" {
			continue
		}
		rest := words[1:]
		for len(rest) > 0 && (strings.HasPrefix(rest[0], "[") || !strings.Contains(rest[0], ":")) {
			rest = rest[1:] // options in brackets
		}
		if len(rest) >= 2 && isDebian(rest[0]+" ", rest[1]) {
			kept.WriteString(line + "\n")
		}
	}
	return kept.String()
}

// isDebian recognises Debian's archive, or a mirror of it, by its path and suite.
func isDebian(uri, suites string) bool {
	return (strings.Contains(uri, "/debian ") || strings.Contains(uri, "/debian/ ") ||
		strings.Contains(uri, "/debian-security ") || strings.Contains(uri, "/debian-security/ ")) &&
		strings.Contains(suites, suite)
}

// apt runs apt-get with a state of its own, so that the host's is neither
// needed nor touched; proxies and the like come from the host's configuration.
type apt struct {
	dir string
	job *job
}

// newApt writes the sources and fetches the package lists.
func (j *job) newApt(ctx context.Context) (*apt, error) {
	a := &apt{dir: filepath.Join(j.tmp, "apt"), job: j}
	lines, stanzas, err := sources("/etc/apt")
	if err != nil {
		return nil, err
	}
	for _, dir := range []string{"sources.d", "state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(a.dir, dir), 0o755); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(a.dir, "sources.d", "debian.list"), []byte(lines), 0o644),
		os.WriteFile(filepath.Join(a.dir, "sources.d", "debian.sources"), []byte(stanzas), 0o644),
	); err != nil {
		return nil, err
	}
	j.say("reading Debian's package lists")
	return a, a.run(ctx, "", "-o", "APT::Update::Error-Mode=any", "update")
}

func (a *apt) options() []string {
	return []string{
		"-qq", "-o", "Dir::Etc::sourcelist=/dev/null", "-o", "Dir::Etc::sourceparts=" + filepath.Join(a.dir, "sources.d"),
		"-o", "Dir::State=" + filepath.Join(a.dir, "state"), "-o", "Dir::State::status=/dev/null",
		"-o", "Dir::Cache=" + filepath.Join(a.dir, "cache"), "-o", "APT::Sandbox::User=root",
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

// depends returns the package that a meta package stands for.
func (a *apt) depends(ctx context.Context, pkg, prefix string) (string, error) {
	args := append(a.options(), "depends", pkg)
	cmd := exec.CommandContext(ctx, "apt-cache", args[1:]...) // apt-cache has no -qq
	cmd.Env = environment()
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("cannot look up the package %s: %w", pkg, err)
	}
	var found []string
	for _, line := range strings.Split(string(out), "\n") {
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
	j.say("fetching the kernel (%s)", pkg)
	k := kernel{version: strings.TrimPrefix(pkg, "linux-image-"), tree: filepath.Join(j.tmp, "kernel"), apt: a}
	if err := a.download(ctx, pkg, k.tree); err != nil {
		return kernel{}, err
	}
	k.image = filepath.Join(k.tree, "boot", "vmlinuz-"+k.version)
	k.modules = filepath.Join(k.tree, "lib/modules", k.version)
	return k, j.run(ctx, "", "depmod", "-b", k.tree, k.version)
}

// run runs a program, with what it prints as progress. Its last words are in
// the error.
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

// environment is what programs get of hatchd's own: its secrets are not for
// packages' scripts.
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
	const most = 2048
	t.text = append(t.text, p...)
	t.text = t.text[max(0, len(t.text)-most):]
	return len(p), nil
}
