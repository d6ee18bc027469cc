package ringmq;

import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.io.OutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.regex.Pattern;
import org.apache.rocketmq.tools.command.MQAdminStartup;
import ringmq.rig.Until;

/** Runs RocketMQ's mqadmin in this JVM and gives what it printed; other threads keep their own output. */
final class Capture {
    private static final InheritableThreadLocal<ByteArrayOutputStream> HERE = new InheritableThreadLocal<>();

    static {
        System.setOut(new PrintStream(new Router(System.out), true, StandardCharsets.UTF_8));
        System.setErr(new PrintStream(new Router(System.err), true, StandardCharsets.UTF_8));
    }

    /** What a command prints that did not wait long enough: its limits are three and five seconds, whatever the machine. */
    private static final Pattern IMPATIENT = Pattern.compile("RemotingTimeoutException|RemotingTooMuchRequestException");
    private static final int TRIES = 4;

    /** Stdout and stderr of {@code mqadmin ARGUMENTS}; run again if it did not wait for an answer. */
    static synchronized String mqadmin(String... arguments) {
        for (int tries = 1;; tries++) {
            ByteArrayOutputStream output = new ByteArrayOutputStream();
            run(output, arguments);
            String printed = output.toString(StandardCharsets.UTF_8);
            if (tries == TRIES || !IMPATIENT.matcher(printed).find()) {
                return printed;
            }
        }
    }

    /** The same for a command that never ends by itself: it is interrupted once it has printed this. */
    static synchronized String mqadminUntil(Pattern enough, String... arguments) {
        ByteArrayOutputStream output = new ByteArrayOutputStream();
        Thread command = new Thread(() -> run(output, arguments), "mqadmin");
        command.start();
        try {
            Until.holds(Clients.SOON, () -> enough + " in " + output, () -> enough.matcher(output.toString(StandardCharsets.UTF_8)).find());
        } finally {
            while (command.isAlive()) {
                command.interrupt();
                Until.pause();
            }
        }
        return output.toString(StandardCharsets.UTF_8);
    }

    private static void run(ByteArrayOutputStream output, String... arguments) {
        // Some commands keep a client that they have shut down: each run takes new ones.
        Commands.forget();
        HERE.set(output);
        try {
            MQAdminStartup.main0(arguments, null);
        } finally {
            HERE.remove();
        }
    }

    private static final class Commands extends MQAdminStartup {
        static void forget() {
            SUB_COMMANDS.clear();
        }
    }

    private static final class Router extends OutputStream {
        private final OutputStream otherwise;

        Router(OutputStream otherwise) {
            this.otherwise = otherwise;
        }

        private OutputStream here() {
            ByteArrayOutputStream captured = HERE.get();
            return captured == null ? otherwise : captured;
        }

        @Override
        public void write(int b) throws IOException {
            here().write(b);
        }

        @Override
        public void write(byte[] bytes, int from, int count) throws IOException {
            here().write(bytes, from, count);
        }

        @Override
        public void flush() throws IOException {
            here().flush();
        }
    }

    private Capture() {}
}
