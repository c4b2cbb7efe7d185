// Package archtest holds the import direction of the module: its test fails when
// a package imports what the map in docs/design.md does not let it import.
//
// The rules are in archtest_test.go. A new package needs a rule; that is the
// moment to ask where it belongs.
package archtest
