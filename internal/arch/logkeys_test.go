package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// attributes are the functions that make one attribute; the key is their first
// argument.
var attributes = []string{"Any", "Bool", "Duration", "Float64", "Group", "Int", "Int64", "String", "Time", "Uint64"}

// logMethods maps the methods of a logger to the number of arguments before the
// first key.
var logMethods = map[string]int{
	"Debug": 1, "Info": 1, "Warn": 1, "Error": 1, "With": 0, "Log": 3,
	"DebugContext": 2, "InfoContext": 2, "WarnContext": 2, "ErrorContext": 2,
}

// TestLogKeysAreConstants requires a constant in internal/logkey for each key of
// more than one log call.
func TestLogKeysAreConstants(t *testing.T) {
	control := "package p\nfunc f() { log.Info(\"m\", \"one\", 1, logkey.Error, \"no key\"); slog.Int(\"two\", 2); t.Error(\"text\") }"
	if got := literalKeys(t, "control.go", control); !slices.Equal(got, []logKey{{"one", "control.go:2"}, {"two", "control.go:2"}}) {
		t.Fatalf("the keys of the control are %v", got)
	}
	first := map[string]string{}
	walk(t, func(file, below string) error {
		inside := strings.HasPrefix(below, "internal/") || strings.HasPrefix(below, "cmd/")
		if !inside || filepath.Ext(below) != ".go" || strings.HasSuffix(below, "_test.go") {
			return nil
		}
		for _, k := range literalKeys(t, file, nil) {
			if first[k.name] == "" {
				first[k.name] = k.at
			} else {
				t.Errorf("%s: the log key %q is also used at %s; make it a constant of internal/logkey", k.at, k.name, first[k.name])
			}
		}
		return nil
	})
	if len(first) == 0 {
		t.Error("no log keys were found")
	}
}

// logKey is a literal key, and the file and line of its use.
type logKey struct{ name, at string }

// literalKeys returns the literal keys in the log calls of a file.
func literalKeys(t *testing.T, file string, source any) []logKey {
	t.Helper()
	files := token.NewFileSet()
	parsed, err := parser.ParseFile(files, file, source, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	var keys []logKey
	ast.Inspect(parsed, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		for _, arg := range keyArguments(call) {
			if text, ok := arg.(*ast.BasicLit); ok && text.Kind == token.STRING {
				name, _ := strconv.Unquote(text.Value)
				at := files.Position(text.Pos())
				keys = append(keys, logKey{name, strings.TrimPrefix(at.Filename, "../../") + ":" + strconv.Itoa(at.Line)})
			}
		}
		return true
	})
	return keys
}

// keyArguments returns the arguments of a log call that are keys or attributes.
func keyArguments(call *ast.CallExpr) []ast.Expr {
	method, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return nil
	}
	if on, ok := method.X.(*ast.Ident); ok && on.Name == "slog" && slices.Contains(attributes, method.Sel.Name) && len(call.Args) > 0 {
		return call.Args[:1]
	}
	skip, ok := logMethods[method.Sel.Name]
	if !ok || len(call.Args) < skip+2 {
		return nil
	}
	var keys []ast.Expr
	for i := skip; i < len(call.Args); i++ {
		keys = append(keys, call.Args[i])
		if _, isCall := call.Args[i].(*ast.CallExpr); !isCall { // an attribute has no value after it
			i++
		}
	}
	return keys
}
