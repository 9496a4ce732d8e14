def test_the_command_says_what_it_will_be_and_where_the_suites_are(command):
    code, out, err = command("bench")
    assert (code, err, out.count("\n")) == (0, "", 1)
    assert "later release" in out and "benchmarks/" in out
