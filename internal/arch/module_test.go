package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/hatchvm/hatch"

// goFile is one parsed source file.
type goFile struct {
	path  string // below the repository, with slashes
	ast   *ast.File
	lines int
}

func (f goFile) isTest() bool { return strings.HasSuffix(f.path, "_test.go") }

// imports returns the import paths of the file.
func (f goFile) imports() []string {
	var paths []string
	for _, spec := range f.ast.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			paths = append(paths, p)
		}
	}
	return paths
}

// goPackage is a folder with source files, whatever their build tags.
type goPackage struct {
	dir   string // below the repository, with slashes
	files []goFile
}

// packages parses every Go file of the module.
func packages(t *testing.T) []goPackage {
	t.Helper()
	root := filepath.Join("..", "..")
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatalf("the repository is not where this test looks for it: %v", err)
	}
	var all []goPackage
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		below = filepath.ToSlash(below)
		if entry.IsDir() {
			if skipped(entry.Name(), below) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(below, ".go") {
			return nil
		}
		parsed, err := parse(file, below)
		if err != nil {
			return err
		}
		all = add(all, parsed)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 10 {
		t.Fatalf("found %d packages only: the walk is broken", len(all))
	}
	return all
}

func skipped(name, below string) bool {
	hidden := strings.HasPrefix(name, ".") && below != "."
	return hidden || name == "testdata" || below == "bin" || below == "data"
}

func parse(file, below string) (goFile, error) {
	fset := token.NewFileSet()
	tree, err := parser.ParseFile(fset, file, nil, parser.ParseComments)
	if err != nil {
		return goFile{}, err
	}
	return goFile{path: below, ast: tree, lines: fset.File(tree.FileStart).LineCount()}, nil
}

// add puts the file into its package. Files of one folder come in a row or
// with sub-folders between them.
func add(all []goPackage, f goFile) []goPackage {
	dir := path.Dir(f.path)
	for i := range all {
		if all[i].dir == dir {
			all[i].files = append(all[i].files, f)
			return all
		}
	}
	return append(all, goPackage{dir: dir, files: []goFile{f}})
}

// code returns the files that are no tests.
func (p goPackage) code() []goFile {
	var files []goFile
	for _, f := range p.files {
		if !f.isTest() {
			files = append(files, f)
		}
	}
	return files
}
