package main

import (
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
)

func TestListsAreFilteredSortedAndFormatted(t *testing.T) {
	const web, db, broken = "vm_web000000001", "vm_db0000000002", "vm_db0000000003"
	for args, want := range map[string]string{
		"ls -q --sort mem_mib":                               db + " " + broken + " " + web,
		"ls -q --sort -mem_mib":                              web + " " + db + " " + broken,
		"ls -q --sort created_at":                            db + " " + web + " " + broken,
		"ls -q --sort ssh_port":                              db + " " + broken + " " + web,
		"ls -q --filter state=stopped":                       db,
		"ls -q -f state!=stopped -f mem_mib=512":             broken,
		"ls -q --filter label=team":                          web,
		"ls -q --filter label=team=b":                        "",
		"ls -q --filter label!=team":                         db + " " + broken,
		"ls -q --filter enable_network=true":                 web,
		"image ls -q --filter rootfs_format=ext4 --sort -id": "img_minimal img_default",
		"key ls -q --filter name=ci":                         "",
		"execs web -a -q --sort pid":                         "exec_end000000002 exec_run000000001",
		"ls --format {{.name}}:{{.ssh_port}} -f name!=":      "web:16001 db:",
		"ls --format {{upper_.state}}":                       "RUNNING STOPPED ERROR",
		"ls --format {{.colour}}":                            "usage",
		"ls --format {{.labels.team}}":                       "a",
		"ls --format jsonl --filter name=db --no-headers":    `{"id":"` + db + `"`,
		"inspect web db --format {{.vcpu_count}}":            "2 1",
		"inspect web --format {{json_.labels}}":              `{"hatch.ssh.user":"alice","team":"a"}`,
		"image inspect debian --format {{.rootfs_bytes}}":    "419430400",
		"rm db --format {{.status}}:{{.id}}":                 "deleted:" + db,
		"events --format {{.seq}}:{{.actor.kind}}":           "1:key",
	} {
		t.Run(args, func(t *testing.T) {
			f := newFake(t)
			f.events = []api.Event{{Seq: 1, Type: "vm.created", Actor: api.Actor{Kind: api.ActorKey}}}
			s := newSession(t, f)
			words := strings.Fields(args)
			for i := range words {
				words[i] = strings.ReplaceAll(words[i], "_.", " .")
			}
			code := s.hatch(words...)
			got := strings.Join(strings.Fields(s.stdout.String()), " ")
			if want == "usage" {
				if code != exitUsage || got != "" {
					t.Errorf("exit code %d, printed %q", code, got)
				}
				return
			}
			if isPrefix := strings.HasPrefix(want, "{\"id") && strings.HasPrefix(got, want); code != 0 || got != want && !isPrefix {
				t.Errorf("exit code %d, printed %q, want %q: %s", code, got, want, &s.stderr)
			}
		})
	}
}

func TestNoHeaders(t *testing.T) {
	s := newSession(t, newFake(t))
	s.hatch("ls")
	head, rest, _ := strings.Cut(s.stdout.String(), "\n")
	if s.hatch("ls", "--no-headers"); s.stdout.String() != rest || !strings.HasPrefix(head, "ID") {
		t.Errorf("printed %q", &s.stdout)
	}
	if code := s.hatch("--version"); code != 0 || !strings.HasPrefix(s.stdout.String(), "hatch version ") {
		t.Errorf("exit code %d, printed %q", code, &s.stdout)
	}
}

func TestPrune(t *testing.T) {
	const gone = "vm_db0000000002\nvm_db0000000003\n"
	for _, tc := range []struct {
		args, stdin string
		tty         bool
		out         string
		code        int
	}{
		{"prune", "", false, "", exitUsage},
		{"prune -f", "", false, gone, 0},
		{"prune -f --filter state=error", "", false, "vm_db0000000003\n", 0},
		{"prune -f --filter name=web", "", false, "", 0},
		{"prune", "y\n", true, gone, 0},
		{"prune", "n\n", true, "", exitOwn},
		{"prune", "", true, "", exitOwn},
	} {
		t.Run(tc.args+tc.stdin, func(t *testing.T) {
			f := newFake(t)
			s := newSession(t, f)
			s.stdin, s.tty = strings.NewReader(tc.stdin), tc.tty
			if code := s.hatch(strings.Fields(tc.args)...); code != tc.code || s.stdout.String() != tc.out {
				t.Errorf("exit code %d, printed %q: %s", code, &s.stdout, &s.stderr)
			}
			if left := 3 - strings.Count(tc.out, "\n"); len(f.vms) != left {
				t.Errorf("%d VMs are left, want %d", len(f.vms), left)
			}
		})
	}
}

func TestInfo(t *testing.T) {
	f := newFake(t)
	f.keys[0].Current = true
	s := newSession(t, f)
	if code := s.hatch("info"); code != 0 || !strings.Contains(s.stdout.String(), "1 error, 1 running, 1 stopped") || !strings.Contains(s.stdout.String(), "admin") {
		t.Errorf("exit code %d, printed %s%s", code, &s.stdout, &s.stderr)
	}
	if s.hatch("info", "--format", "{{.vms.running}} {{.images}}"); s.stdout.String() != "1 2\n" {
		t.Errorf("printed %q", &s.stdout)
	}
}
