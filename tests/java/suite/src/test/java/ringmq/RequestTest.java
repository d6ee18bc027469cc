package ringmq;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertThrows;

import java.util.List;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import org.apache.rocketmq.client.consumer.DefaultMQPushConsumer;
import org.apache.rocketmq.client.consumer.listener.ConsumeConcurrentlyStatus;
import org.apache.rocketmq.client.consumer.listener.MessageListenerConcurrently;
import org.apache.rocketmq.client.exception.RequestTimeoutException;
import org.apache.rocketmq.client.producer.DefaultMQProducer;
import org.apache.rocketmq.client.producer.RequestCallback;
import org.apache.rocketmq.client.utils.MessageUtil;
import org.apache.rocketmq.common.message.Message;
import org.apache.rocketmq.common.message.MessageExt;
import org.junit.jupiter.api.Test;

/** Request and reply: a producer waits for what a consumer says to its message. */
class RequestTest extends SharedServer {
    private static final long TIMEOUT_MS = 60_000;

    /** A consumer that replies to each message with its body in capitals. */
    private String echo() throws Exception {
        String topic = clients.topic(2);
        DefaultMQProducer replier = clients.producer();
        DefaultMQPushConsumer consumer = clients.push(Clients.unique("group"), topic, "*");
        consumer.registerMessageListener((MessageListenerConcurrently) (messages, context) -> {
            for (MessageExt message : messages) {
                try {
                    replier.send(MessageUtil.createReplyMessage(message, Clients.bytes(Clients.text(message).toUpperCase())));
                } catch (Exception e) {
                    return ConsumeConcurrentlyStatus.RECONSUME_LATER;
                }
            }
            return ConsumeConcurrentlyStatus.CONSUME_SUCCESS;
        });
        consumer.start();
        return topic;
    }

    @Test
    void waiting() throws Exception {
        String topic = echo();
        DefaultMQProducer requester = clients.producer();
        for (String body : List.of("one", "two", "three")) {
            assertEquals(body.toUpperCase(), Clients.text(requester.request(new Message(topic, Clients.bytes(body)), TIMEOUT_MS)));
        }
    }

    @Test
    void calledBack() throws Exception {
        String topic = echo();
        DefaultMQProducer requester = clients.producer();
        CompletableFuture<Message> reply = new CompletableFuture<>();
        requester.request(new Message(topic, Clients.bytes("hello")), new RequestCallback() {
            @Override
            public void onSuccess(Message message) {
                // Stock clients call it with nothing when the request is sent, and again with the reply.
                if (message != null) {
                    reply.complete(message);
                }
            }

            @Override
            public void onException(Throwable e) {
                reply.completeExceptionally(e);
            }
        }, TIMEOUT_MS);
        assertEquals("HELLO", Clients.text(reply.get(TIMEOUT_MS * 2, TimeUnit.MILLISECONDS)));
    }

    @Test
    void nobodyReplies() throws Exception {
        String topic = clients.topic(1);
        DefaultMQProducer requester = clients.producer();
        // It knows the route and has its connection: the time is for the reply.
        clients.send(requester, topic, List.of("nobody"));
        assertThrows(RequestTimeoutException.class,
            () -> requester.request(new Message(topic, Clients.bytes("anyone?")), 15_000));
    }
}
