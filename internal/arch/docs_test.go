package arch

import (
	"flag"
	"fmt"
	"go/ast"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/internal/config"
	"github.com/hatchvm/hatch/internal/event"
)

var update = flag.Bool("update", false, "write the generated reference pages anew")

const generated = "<!-- Written by `go test ./internal/arch -run Reference -update`; do not edit. -->\n\n"

func TestConfigurationReference(t *testing.T) {
	page := generated + "# Configuration\n\n" +
		"A flag takes precedence over the environment, that over the file, that over the default. The file is the one that\n" +
		"`--config` or `HATCH_CONFIG` names, else `/etc/hatch/hatchd.yaml`. Unknown names in the file are errors; all errors are\n" +
		"reported together. `hatchd config` prints the effective settings and their sources.\n\n" +
		config.Reference()
	requirePage(t, "configuration.md", page)
}

func TestEventsReference(t *testing.T) {
	page := generated + "# Events\n\n" +
		"`GET /events` and `GET /vms/{id}/events` return events, oldest first, as pages or, with `Accept: text/event-stream`, as a\n" +
		"stream; webhooks receive the same events. A change and its event are stored in one transaction; `seq` follows commit order:\n" +
		"a reader that has read up to a `seq` has missed no earlier event.\n\n" +
		"Each event has `seq`, `id`, `type`, `vm_id` and `vm_name` (if it is about a VM), `message` (a sentence), `actor`,\n" +
		"`request_id` (of the request that caused it), `data` and `at`. The actor's `kind` is `key` (with the key's `id` and\n" +
		"`name`), `user` (a user with a token, with its `id` and `name`), `local` (a process of the host that needs no key, with its user as `name`, such as `local:uid 0`), `guest` (the guest of\n" +
		"the VM), `rule` (with its `name`) or `hatchd`. Fields may be added; ignore those you do not know.\n\n" +
		event.Reference() + "\n" +
		"Only the newest events are kept, within `HATCH_EVENTS_KEEP`, `HATCH_EVENTS_PER_VM` and `HATCH_EVENTS_MAX`. Events of a\n" +
		"deleted VM are kept, too.\n"
	requirePage(t, "events.md", page)
}

func TestCommandLineReference(t *testing.T) {
	program := filepath.Join(t.TempDir(), "hatch")
	out, err := exec.Command("go", "build", "-buildvcs=false", "-o", program, "../../cmd/hatch").CombinedOutput()
	if err != nil {
		t.Fatalf("cannot build hatch: %v\n%s", err, out)
	}
	var page strings.Builder
	page.WriteString(generated + "# Command line\n\nThe output of `hatch help` for every command.\n")
	describe(t, &page, program, nil)
	requirePage(t, "cli.md", page.String())
}

// describe writes a command's help, then that of each command below it.
func describe(t *testing.T, page *strings.Builder, program string, command []string) {
	t.Helper()
	cmd := exec.Command(program, append(append([]string{}, command...), "--help")...)
	cmd.Env = []string{"HOME=/root", "PATH=/usr/bin:/bin"}
	help, err := cmd.Output()
	if err != nil {
		t.Fatalf("hatch %s --help: %v", strings.Join(command, " "), err)
	}
	fmt.Fprintf(page, "\n## %s\n\n```text\n%s\n```\n", strings.Join(append([]string{"hatch"}, command...), " "), strings.TrimSpace(string(help)))
	for _, below := range commandsIn(string(help)) {
		describe(t, page, program, append(append([]string{}, command...), below))
	}
}

var commandLine = regexp.MustCompile(`^  ([a-z][a-z-]*) {2,}\S`)

// commandsIn returns the commands that a help text lists, below any heading.
func commandsIn(help string) []string {
	var found []string
	for line := range strings.Lines(help) {
		if m := commandLine.FindStringSubmatch(line); m != nil && m[1] != "help" && m[1] != "completion" {
			found = append(found, m[1])
		}
	}
	return found
}

func requirePage(t *testing.T, name, want string) {
	t.Helper()
	file := filepath.Join("..", "..", "docs", "reference", name)
	if *update {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("docs/reference/%s is out of date; run: go test ./internal/arch -run Reference -update", name)
	}
}

var link = regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)

func TestLinksLeadSomewhere(t *testing.T) {
	pages := 0
	walk(t, func(file, below string) error {
		if filepath.Ext(file) != ".md" {
			return nil
		}
		pages++
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(filepath.Dir(file), m[1])); err != nil {
				t.Errorf("%s: the link to %s leads nowhere", below, m[1])
			}
		}
		return nil
	})
	if pages < 5 {
		t.Fatalf("%d pages found", pages)
	}
}

// TestPromisesHaveTheirTests looks for the tests that SECURITY.md names.
func TestPromisesHaveTheirTests(t *testing.T) {
	text, err := os.ReadFile("../../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	exist := map[string]bool{}
	for _, p := range packages(t) {
		for _, f := range p.files {
			for _, d := range f.ast.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok {
					exist[fn.Name.Name] = true
				}
			}
		}
	}
	named := regexp.MustCompile("`((?:Test|Fuzz)[A-Z]\\w+)`").FindAllStringSubmatch(string(text), -1)
	if len(named) == 0 {
		t.Error("no promise names a test")
	}
	for _, name := range named {
		if !exist[name[1]] {
			t.Errorf("there is no test %s", name[1])
		}
	}
}
