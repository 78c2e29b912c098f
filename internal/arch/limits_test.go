package arch

import (
	"go/ast"
	"strings"
	"testing"
)

// Limits of types. A larger type has more than one responsibility.
const (
	maxMethods          = 60
	maxInterfaceMethods = 8 // declared by an interface itself; it may embed others
)

// wideTypes are exceptions: types that need more methods, and why.
var wideTypes = map[string]string{
	"client.Client": "the public client has one method for each route of the API",
}

func TestTypesStaySmall(t *testing.T) {
	for _, p := range packages(t) {
		methods := map[string]int{}
		for _, f := range p.code() {
			for _, decl := range f.ast.Decls {
				if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv != nil {
					methods[receiver(fn)]++
				}
			}
			for name, declared := range interfaces(f) {
				if declared > maxInterfaceMethods {
					t.Errorf("%s: interface %s declares %d methods, the limit is %d; compose it from interfaces named by role", f.path, name, declared, maxInterfaceMethods)
				}
			}
		}
		for name, count := range methods {
			if count > maxMethods && wideTypes[p.dir+"."+name] == "" {
				t.Errorf("%s: type %s has %d methods, the limit is %d; split it by what its methods need", p.dir, name, count, maxMethods)
			}
		}
	}
}

// receiver returns the name of the type that a method belongs to.
func receiver(fn *ast.FuncDecl) string {
	t := fn.Recv.List[0].Type
	if star, ok := t.(*ast.StarExpr); ok {
		t = star.X
	}
	switch generic := t.(type) {
	case *ast.IndexExpr:
		t = generic.X
	case *ast.IndexListExpr:
		t = generic.X
	}
	if ident, ok := t.(*ast.Ident); ok {
		return ident.Name
	}
	return ""
}

// interfaces returns how many methods each interface of a file declares itself.
func interfaces(f goFile) map[string]int {
	found := map[string]int{}
	ast.Inspect(f.ast, func(n ast.Node) bool {
		spec, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		if contract, ok := spec.Type.(*ast.InterfaceType); ok {
			found[spec.Name.Name] = 0
			for _, field := range contract.Methods.List {
				found[spec.Name.Name] += len(field.Names)
			}
		}
		return true
	})
	return found
}

// A helper is a short function with one caller, which would read as well, or better,
// with those lines inlined. Some are justified: steps of a list, seams between
// packages, and functions that tests call.
const (
	helperLines       = 10
	maxHelpersPercent = 8.0
)

// TestFewHelpersHaveOneCaller counts by name, so it is approximate: a name that is
// called twice anywhere does not count.
func TestFewHelpersHaveOneCaller(t *testing.T) {
	type function struct {
		at, name string
		lines    int
	}
	var functions []function
	calls, contracts := map[string]int{}, map[string]bool{}
	for _, p := range packages(t) {
		for _, f := range p.code() {
			for _, decl := range f.ast.Decls {
				if fn, ok := decl.(*ast.FuncDecl); ok {
					functions = append(functions, function{f.path, fn.Name.Name, f.linesOf(fn)})
				}
			}
			ast.Inspect(f.ast, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.CallExpr:
					calls[called(n)]++
				case *ast.InterfaceType:
					for _, field := range n.Methods.List {
						for _, name := range field.Names {
							contracts[name.Name] = true
						}
					}
				}
				return true
			})
		}
	}
	var helpers []string
	for _, fn := range functions {
		if fn.lines <= helperLines && calls[fn.name] == 1 && !contracts[fn.name] {
			helpers = append(helpers, fn.at+" "+fn.name)
		}
	}
	percent := 100 * float64(len(helpers)) / float64(len(functions))
	t.Logf("%d of %d functions are helpers with one caller: %.1f %%", len(helpers), len(functions), percent)
	if percent > maxHelpersPercent {
		t.Errorf("%.1f %% of all functions are helpers of up to %d lines with one caller, the limit is %.0f %%; put the lines into the caller where it reads better:\n%s",
			percent, helperLines, maxHelpersPercent, strings.Join(helpers, "\n"))
	}
}

// called returns the last name in the called expression.
func called(call *ast.CallExpr) string {
	fun := call.Fun
	if generic, ok := fun.(*ast.IndexExpr); ok {
		fun = generic.X
	}
	switch fun := fun.(type) {
	case *ast.Ident:
		return fun.Name
	case *ast.SelectorExpr:
		return fun.Sel.Name
	}
	return ""
}
