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
	fset  *token.FileSet
	lines int
}

// linesOf returns the number of lines of a node.
func (f goFile) linesOf(n ast.Node) int {
	return f.fset.Position(n.End()).Line - f.fset.Position(n.Pos()).Line + 1
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

// goPackage is a directory with source files, of any build tags.
type goPackage struct {
	dir   string // below the repository, with slashes
	files []goFile
}

// packages parses every Go file of the module.
func packages(t *testing.T) []goPackage {
	t.Helper()
	var all []goPackage
	walk(t, func(file, below string) error {
		if strings.Contains("/"+below, "/testdata/") || !strings.HasSuffix(below, ".go") {
			return nil
		}
		parsed, err := parse(file, below)
		if err == nil {
			all = add(all, parsed)
		}
		return err
	})
	if len(all) < 10 {
		t.Fatalf("found %d packages only: the walk is broken", len(all))
	}
	return all
}

// walk visits the repository's files, by the path to open and the path below the
// repository, with slashes. It leaves out hidden folders other than .ci, and build results.
func walk(t *testing.T, visit func(file, below string) error) {
	t.Helper()
	root := filepath.Join("..", "..")
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatalf("the repository is not where this test looks for it: %v", err)
	}
	err := filepath.WalkDir(root, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		below, err := filepath.Rel(root, file)
		if err != nil {
			return err
		}
		below = filepath.ToSlash(below)
		if !entry.IsDir() {
			return visit(file, below)
		}
		hidden := strings.HasPrefix(entry.Name(), ".") && below != "." && entry.Name() != ".ci"
		if hidden || below == "bin" || below == "data" {
			return filepath.SkipDir
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func parse(file, below string) (goFile, error) {
	fset := token.NewFileSet()
	tree, err := parser.ParseFile(fset, file, nil, parser.ParseComments)
	if err != nil {
		return goFile{}, err
	}
	return goFile{path: below, ast: tree, fset: fset, lines: fset.File(tree.FileStart).LineCount()}, nil
}

// add adds the file to its package. Files of a directory are visited in order, with
// subdirectories in between.
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

// code returns the files that are not tests.
func (p goPackage) code() []goFile {
	var files []goFile
	for _, f := range p.files {
		if !f.isTest() {
			files = append(files, f)
		}
	}
	return files
}

// assigned returns the fields that the file assigns to, as in x.Field = y.
func assigned(f goFile) []string {
	var fields []string
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if statement, ok := n.(*ast.AssignStmt); ok {
			for _, to := range statement.Lhs {
				if field, ok := to.(*ast.SelectorExpr); ok {
					fields = append(fields, field.Sel.Name)
				}
			}
		}
		return true
	})
	return fields
}
