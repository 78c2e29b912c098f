package arch

import (
	"go/ast"
	"path"
	"slices"
	"strings"
	"testing"
)

// Limits of a package comment and of a file, in lines.
const (
	minComment  = 3
	maxComment  = 15
	maxCodeFile = 450
	maxTestFile = 700
)

func TestEachPackageHasOneComment(t *testing.T) {
	for _, p := range packages(t) {
		files := p.code()
		if len(files) == 0 {
			files = p.files // a package with tests only
		}
		var commented []string
		for _, f := range files {
			if f.ast.Doc == nil {
				continue
			}
			commented = append(commented, path.Base(f.path))
			lines := strings.Count(f.ast.Doc.Text(), "\n")
			if lines < minComment || lines > maxComment {
				t.Errorf("%s: the package comment has %d lines; say in %d to %d what the package is for, what it is not for, and where to start",
					f.path, lines, minComment, maxComment)
			}
			if want := opening(p.dir, f.ast.Name.Name); !strings.HasPrefix(f.ast.Doc.Text(), want) {
				t.Errorf("%s: the package comment does not begin with %q", f.path, want)
			}
		}
		if len(commented) != 1 {
			t.Errorf("%s: %d files have a package comment (%s); exactly one has it, the one a reader opens first",
				p.dir, len(commented), strings.Join(commented, ", "))
		}
	}
}

func opening(dir, name string) string {
	if name != "main" {
		return "Package " + name + " "
	}
	return "Command " + path.Base(dir) + " "
}

func TestFilesStayShort(t *testing.T) {
	for _, p := range packages(t) {
		for _, f := range p.files {
			limit := maxCodeFile
			if f.isTest() {
				limit = maxTestFile
			}
			if f.lines > limit && !ast.IsGenerated(f.ast) {
				t.Errorf("%s: %d lines; the limit is %d; split it by topic", f.path, f.lines, limit)
			}
		}
	}
}

func TestNoCatchAllPackages(t *testing.T) {
	drawers := []string{"util", "utils", "common", "helper", "helpers", "misc", "shared", "base", "lib", "types", "models", "pkg"}
	for _, p := range packages(t) {
		for part := range strings.SplitSeq(p.dir, "/") {
			if slices.Contains(drawers, part) {
				t.Errorf("%s: %q does not name a topic; name the package after what it is about", p.dir, part)
			}
		}
	}
}

func TestNoInitFunctions(t *testing.T) {
	for _, p := range packages(t) {
		for _, f := range p.code() {
			for _, decl := range f.ast.Decls {
				if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
					t.Errorf("%s: has an init function; use a constructor and pass its result", f.path)
				}
			}
		}
	}
}
