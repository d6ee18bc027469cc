package ringmq;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Set;
import java.util.stream.Collectors;
import org.junit.AssumptionViolatedException;
import org.junit.rules.TestRule;
import org.junit.runner.Description;
import org.junit.runners.model.Statement;

/**
 * Skips the tests that the file {@code not-yet} lists: a class, or CLASS#METHOD, a line. (Surefire's own files take no
 * methods.) The property {@code not.yet} names the file; empty, all tests are run.
 */
public final class NotYet implements TestRule {
    private static final Set<String> LISTED = read(System.getProperty("not.yet", ""));

    @Override
    public Statement apply(Statement test, Description description) {
        String type = description.getTestClass().getSimpleName();
        // A parameter's number does not matter: `method[3]`.
        String method = description.getMethodName().replaceFirst("\\[.*", "");
        if (!LISTED.contains(type) && !LISTED.contains(type + "#" + method)) {
            return test;
        }
        return new Statement() {
            @Override
            public void evaluate() {
                throw new AssumptionViolatedException("is listed in not-yet");
            }
        };
    }

    private static Set<String> read(String file) {
        if (file.isEmpty()) {
            return Set.of();
        }
        try {
            return Files.readAllLines(Path.of(file)).stream().map(String::strip)
                .filter(line -> !line.isEmpty() && !line.startsWith("#")).collect(Collectors.toSet());
        } catch (IOException e) {
            throw new AssertionError("the list of tests that do not pass yet", e);
        }
    }
}
